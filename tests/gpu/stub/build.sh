#!/bin/bash
# Build a stub of the CUDA runtime and driver: no GPU, kernels do nothing, memory is address space only.
#   build.sh PYTHON OUT     PYTHON: of an environment with the CUDA build of torch (pip install torch==2.11.0: 5 GB)
# OUT/python then runs PYTHON with the stub.
set -e
PYTHON=$1 OUT=$2 HERE=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
SITE=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
INCLUDE=$SITE/nvidia/cu13/include
if [ ! -e "$SITE/torch/lib/libtorch_cuda.so" ] || [ ! -d "$INCLUDE" ]; then
  echo "stub: $PYTHON has no build of torch for CUDA 13: python3.12 -m venv VENV && VENV/bin/pip install torch==2.11.0" >&2
  exit 1
fi
if [ ! -d "$OUT/crt" ]; then  # headers that the runtime's wheel leaves out
  "$PYTHON" -m pip download -q --no-deps nvidia-cuda-crt==13.0.88 -d "$OUT"
  "$PYTHON" -m zipfile -e "$OUT"/nvidia_cuda_crt*.whl "$OUT/crt"
fi
"$PYTHON" - "$HERE" "$OUT" "$SITE" <<'P'
import re, subprocess, sys
from pathlib import Path

here, out, site = map(Path, sys.argv[1:])


def undefined(library, pattern):
    run = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
    return set(re.findall(pattern, run.stdout))


def write_rest(path, names):
    path.write_text("\n".join(f"int {name}() {{ return 0; }}" for name in sorted(names)) + "\n")


libraries = site / "torch/lib"
defined = set(re.findall(r"^\w+ \**(\w+)\(", (here / "runtime.c").read_text(), re.M))
names = {n for name in ("torch_cuda", "c10_cuda", "torch_python") for n in undefined(libraries / f"lib{name}.so", r"\b_*cuda[A-Z]\w+")}
names = {n for n in names if not re.match(r"__cuda(Register|Unregister|Init|PushCall|PopCall)", n)}
names |= undefined(libraries / "libtorch_cuda.so", r"\bcublas\w+") - {"cublasLt"}
write_rest(out / "runtime_rest.c", names - defined)
defined = set(re.findall(r"^int (\w+)\(", (here / "driver.c").read_text(), re.M))
header = (site / "nvidia/cu13/include/cuda.h").read_text()
names = {n for n in re.findall(r"\bcu[A-Z]\w+", header) if not n.endswith("_st")}
names |= {f"{n}_v2" for n in names if not re.search(r"_v\d$", n)}
write_rest(out / "driver_rest.c", names - defined)
P
gcc -O1 -w -shared -fPIC -I"$INCLUDE" -I"$OUT/crt/nvidia/cu13/include" "$HERE/runtime.c" "$OUT/runtime_rest.c" -ldl \
  -o "$OUT/libstubcuda.so"
gcc -O0 -w -shared -fPIC -Wl,-soname,libcuda.so.1 "$HERE/driver.c" "$OUT/driver_rest.c" -ldl -o "$OUT/libcuda.so.1"
cat > "$OUT/python" <<R
#!/bin/bash
# STUB_GPU_BYTES=85094825984 (H100), 150109356032 (H200); STUB_GPU_NAME='NVIDIA H200'
export TRITON_LIBCUDA_PATH=$OUT TORCHINDUCTOR_COMPILE_THREADS=1 QILIN_STUB_GPU=$OUT
export LD_PRELOAD=$OUT/libstubcuda.so LD_LIBRARY_PATH=$OUT:\$LD_LIBRARY_PATH
exec $PYTHON "\$@"
R
chmod +x "$OUT/python"
echo "$OUT/python"
