"""What `qilin demo` can be told; free of torch."""

from pathlib import Path

from qilin.settings import setting, settings


@settings
class DemoSettings:
    """The whole story on this machine."""

    out: Path = setting(
        default=Path("qilin-demo"), help="folder for dataset/, parts/, align/, instruct/ and evaluation/"
    )
    data: Path | None = setting(
        default=None, help="an imported dataset folder to learn from, instead of drawn pictures"
    )
    recipes: str | None = setting(
        default=None, help="recipe folder: a name or a path (default: tiny; small with --data)"
    )
    pictures: int = setting(default=4000, help="how many pictures to draw")
    seed: int = setting(default=0, help="of pictures, weights and order")
    quick: bool = setting(default=False, help="a smoke run of about a minute; its numbers are labelled as such")
    threads: int = setting(default=1, help="CPU threads that train; models this small are slower on more")

    def __post_init__(self) -> None:
        if self.quick and self.recipes is not None:
            raise ValueError("quick and recipes contradict each other: a quick run has recipes of its own")
        if self.pictures < 36:
            raise ValueError(f"pictures is {self.pictures}; expected at least 36, twelve for each split")
        if self.threads < 1:
            raise ValueError(f"threads is {self.threads}; expected at least 1")
