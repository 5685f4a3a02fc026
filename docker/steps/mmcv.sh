#!/bin/bash
# mmcv.sh KEPT OUT: put a wheel of mmcv into OUT/<key>/, from KEPT/<key>/ where there is one, else built now.
# The key holds all that the compiled ops depend on: torch, CUDA and its architectures, Python, machine.
set -euo pipefail
kept=$1 out=$2
version=1.7.2

if [ "${MMCV_OPS:-1}" != 1 ]; then
    # Python only. From source, for there is no other form; not isolated: its setup.py wants the setuptools of its day.
    MMCV_WITH_OPS=0 "$(dirname "$0")/pip.sh" wheel --no-deps --no-build-isolation --no-binary mmcv --wheel-dir "$out/plain" "mmcv==$version"
    exit
fi

nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2> /dev/null || true)
archs=${TORCH_CUDA_ARCH_LIST:-}
if [ -n "$nvcc" ] && [ -z "$archs" ]; then
    echo 'mmcv-full: say for which GPU to compile, as TORCH_CUDA_ARCH_LIST=8.9 (nvidia-smi --query-gpu=compute_cap --format=csv),' \
         'or leave the ops out with MMCV_OPS=0' >&2
    exit 1
fi
if [ -z "$nvcc" ] && [ -n "$archs" ]; then
    echo "mmcv-full for the GPU architecture $archs: this base has no nvcc. Take a -devel image, or leave TORCH_CUDA_ARCH_LIST empty." >&2
    exit 1
fi

key=$(python - "$archs" <<'PYTHON'
import platform, sys, torch
cuda = f'cu{torch.version.cuda}-sm{sys.argv[1].replace(";", "_").replace(" ", "_")}' if sys.argv[1] else 'cpu'
print(f'torch{torch.__version__}-{cuda}-cp{sys.version_info[0]}{sys.version_info[1]}-{platform.machine()}')
PYTHON
)
mkdir -p "$out/$key"
if compgen -G "$kept/$key/*.whl" > /dev/null; then
    cp "$kept/$key"/*.whl "$out/$key/"
    echo "mmcv-full: the wheel kept for $key is used"
    exit
fi

# A compiler and Python's headers, in this stage alone.
headers=$(python -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
if ! command -v g++ > /dev/null || [ ! -f "$headers/Python.h" ]; then
    DEBS=compiler "$(dirname "$0")/apt.sh" g++ "$([ -f "$headers/Python.h" ] && echo libc6-dev || echo python3-dev)"
fi

work=$(mktemp -d)
"$(dirname "$0")/pip.sh" download --no-deps --no-build-isolation --no-binary mmcv-full --dest "$work" "mmcv-full==$version"
tar -xzf "$work"/mmcv?full-*.tar.gz -C "$work" --strip-components 1
cd "$work"
# torch 2.14's headers are C++20, which this setup.py of 2023 does not know of.
if python -c 'import sys, torch; sys.exit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14))'; then
    sed -Ei 's/-std=c\+\+(14|17)/-std=c++20/g' setup.py
fi
# Debug information of 70 files of templates costs a third of the time and most of the size.
export CFLAGS="-g0 ${CFLAGS:-}"
export MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(nproc)} TORCH_CUDA_ARCH_LIST=$archs
# No GPU is visible in a build: without this the ops would silently be for the CPU alone.
[ -z "$archs" ] || export FORCE_CUDA=1
# Three quarters of a C++ file's time is torch's own headers. All of them begin with the same one, so it is compiled once,
# by the first call and with that call's flags; one with other flags does without it.
common=$work/mmcv/ops/csrc/common/pytorch_cpp_helper.hpp
compiler=$(command -v g++)
mkdir "$work/bin"
cat > "$work/bin/g++" <<SCRIPT
#!/bin/bash
flags=() skip=''
for word in "\$@"; do
    if [ -n "\$skip" ]; then skip=''; continue; fi
    case \$word in
        -c | -MMD | *.cpp) ;;
        -MF | -o) skip=yes ;;
        *) flags+=("\$word") ;;
    esac
done
if [[ " \$* " == *' -c '* ]]; then
    exec 9> "$work/pch.lock"
    flock 9
    [ -e "$common.gch" ] || "$compiler" "\${flags[@]}" -x c++-header "$common" -o "$common.gch" || rm -f "$common.gch"
    exec 9>&-
fi
exec "$compiler" "\$@"
SCRIPT
chmod +x "$work/bin/g++"
export PATH=$work/bin:$PATH CXX=g++
echo "mmcv-full: compiling for $key with $MAX_JOBS jobs"
# Never from a cache of wheels, which does not know the version of torch.
python -m pip wheel --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir "$out/$key" . \
    > "$work/build.log" 2>&1 || { tail -n 60 "$work/build.log"; echo 'mmcv-full did not compile (the end of the log is above)' >&2; exit 1; }
echo "mmcv-full: compiled in $SECONDS s, $(find build -name '*.o' | wc -l) objects, wheel $(du -h "$out/$key"/*.whl | cut -f1)"
