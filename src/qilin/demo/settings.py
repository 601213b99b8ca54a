"""What `qilin demo` can be told; free of torch."""

from pathlib import Path

from qilin.settings import setting, settings


@settings
class DemoSettings:
    """The whole story on this machine."""

    out: Path = setting(Path("qilin-demo"), "folder for dataset/, parts/, align/, instruct/ and evaluation/")
    data: Path | None = setting(None, "an imported dataset folder to learn from, instead of drawn pictures")
    recipes: str | None = setting(None, "recipe folder: a name or a path (default: tiny; small with --data)")
    pictures: int = setting(2400, "how many pictures to draw")
    seed: int = setting(0, "of pictures, weights and order")
    quick: bool = setting(False, "a smoke run of about a minute; its numbers are labelled as such")
    threads: int | None = setting(None, "CPU threads (default: all cores)")

    def __post_init__(self) -> None:
        if self.quick and self.recipes is not None:
            raise ValueError("quick and recipes contradict each other: a quick run has recipes of its own")
        if self.pictures < 36:
            raise ValueError(f"pictures is {self.pictures}; expected at least 36, twelve for each split")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads is {self.threads}; expected at least 1")
