"""Feeds mutated inputs to every reader; anything but success or a one-line refusal is a find.

    python tests/fuzz/run.py [--seconds 300] [--seed 0] [--only NAME ...] [--out FOLDER]

In: small valid inputs (targets.py) and a seed. Out: a line per find on the terminal, and its input with the traceback
in the folder; exit code 1 if there are any. A find is an exception that is no QilinError, a message of several lines,
or more than SLOW seconds. Not run in CI; a find becomes a test of its reader.
"""

import argparse
import contextlib
import io
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import zlib
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from fuzz.targets import Target, make_targets
from qilin.core.errors import QilinError

SLOW = 30  # seconds of one core
MEMORY = 12 << 30  # bytes of address space


class TooSlow(Exception):
    pass


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], help="names of targets")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "qilin-fuzz", help="folder of finds")
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
    signal.signal(signal.SIGPROF, stop_slow)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["QILIN_CACHE"] = str(Path(folder) / "cache")
        targets = {
            name: target for name, target in make_targets(Path(folder)).items() if not args.only or name in args.only
        }
        if not targets:
            parser.error(f"no target is named {' '.join(args.only)}")
        finds, counts = run_all(targets, args.seconds, args.seed, args.out)
    print(
        f"{sum(counts.values()):,} inputs ({', '.join(f'{name} {n:,}' for name, n in counts.items())}); {finds} finds"
    )
    return 1 if finds else 0


def stop_slow(number: int, frame: Any) -> None:
    raise TooSlow


def run_all(targets: dict[str, Target], seconds: float, seed: int, out: Path) -> tuple[int, dict[str, int]]:
    """Each target in turn, for an equal share of the time."""
    known: set[str] = set()
    counts = dict.fromkeys(targets, 0)
    for name, target in targets.items():
        stop = time.monotonic() + seconds / len(targets)
        while time.monotonic() < stop:
            draw = random.Random(f"{seed} {name} {counts[name]}")
            counts[name] += 1
            path, data = target.mutated(draw)
            current = out / f"current{path.suffix}"  # what remains of a crash of the interpreter
            current.write_bytes(data)
            if (problem := try_input(target)) and (place := place_of(problem)) not in known:
                known.add(place)
                file = out / f"{name}-{zlib.crc32(place.encode()):08x}{path.suffix}"
                file.write_bytes(data)
                file.with_suffix(file.suffix + ".txt").write_text(problem, errors="replace")
                print(f"{name}: {place} ({file})", flush=True)
    return len(known), counts


def try_input(target: Target) -> str:
    """What goes wrong with the mutated input; "" for success and refusals of one line."""
    output = io.StringIO()
    signal.setitimer(signal.ITIMER_PROF, SLOW)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            target.read()
    except QilinError as error:
        return f"a message of several lines: {error}\n" if "\n" in str(error) else ""
    except (SystemExit, OSError):  # the command line prints an OSError as one line
        return ""
    except TooSlow:
        return traceback.format_exc() + f"slow: more than {SLOW} seconds"
    except BaseException:  # the point of this program
        return traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return output.getvalue() if "Traceback (most recent call last)" in output.getvalue() else ""


def place_of(problem: str) -> str:
    """The error's name and the last line of Qilin's code in a traceback."""
    lines = problem.strip().splitlines()
    frames = [line.strip() for line in lines if "/qilin/" in line and line.strip().startswith("File")]
    return f"{lines[-1][:120]} at {frames[-1].partition('/qilin/')[2] if frames else '?'}"


if __name__ == "__main__":
    sys.exit(main())
