"""Peak memory of decoding one image, in bytes per pixel, by Pillow's mode: `python bench/image_memory.py`.

Each mode is measured in a process of its own. The limits of qilin/imaging/decode.py follow from it.
"""

import io
import json
import multiprocessing
import platform
import resource
import tempfile
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

SIDE = 5000
MODES = ("1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16", "I", "F")


def write_example(mode: str, path: Path) -> None:
    ramp = np.tile(np.arange(SIDE, dtype=np.float32), (SIDE, 1))
    if mode in ("I;16", "I", "F"):
        image = Image.fromarray(ramp.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    else:
        image = Image.fromarray((ramp / SIDE * 255).astype(np.uint8)).convert(mode)
    image.save(path, "PNG" if mode in ("1", "L", "P", "RGB", "RGBA", "LA", "I;16") else "TIFF")


def measure(path: Path, connection: object) -> None:
    from qilin.imaging.decode import read_image

    small = io.BytesIO()
    Image.new("RGB", (64, 64)).save(small, "PNG")
    read_image(small.getvalue())  # imports
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read_image(path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    connection.send((peak - before) * 1024 / SIDE**2)  # type: ignore[attr-defined]


def main() -> None:
    context = multiprocessing.get_context("spawn")  # this process stays small: a child starts with its parent's peak
    bytes_per_pixel = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "image")
        for mode in MODES:
            receiver, sender = context.Pipe(duplex=False)
            for function, arguments in ((write_example, (mode, path)), (measure, (path, sender))):
                process = context.Process(target=function, args=arguments)
                process.start()
                process.join()
            bytes_per_pixel[mode] = round(receiver.recv(), 1)
            print(mode, bytes_per_pixel[mode], flush=True)
    versions = {"python": platform.python_version(), "pillow": PIL.__version__, "numpy": np.__version__}
    result = {
        "command": "python bench/image_memory.py",
        "machine": platform.machine(),
        "versions": versions,
        "pixels": SIDE**2,
        "bytes_per_pixel": bytes_per_pixel,
    }
    Path(__file__).parent.joinpath("results/image_memory.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
