#!/usr/bin/env bash
# What only a machine with a GPU can tell, in one command and less than nine minutes: is it built
# there, are the results right, does a sanitizer find anything, how fast is it and what bounds it.
#
#   scripts/gpu_check.sh [OUT_DIR]     # default runs/gpu-check; PYTHON=... names the interpreter
#
# Needs nvcc and a Python with torch for CUDA, torchvision, pybind11, scikit-build-core, pytest,
# matplotlib and rich, and for one file of the tests CuPy and ml_dtypes. Downloads nothing, installs
# into a folder that is removed at the end, and leaves the settings of the GPU as they are. A failed
# step does not stop the others; the status is 0 where none failed, 1 where one did, 2 without a GPU.
# A step that takes too long is stopped and has failed, but a sanitizer only if it found something.
# shellcheck disable=SC2317  # the steps are called by name
set -uo pipefail
root=$(realpath "$(dirname "${BASH_SOURCE[0]}")/..")
out=$(realpath -m "${1:-$root/runs/gpu-check}")

# Not grep -q: it leaves at the first line, and a program that then has more to say fails.
if ! nvidia-smi -L 2>/dev/null | grep '^GPU ' >/dev/null; then
  echo "gpu_check: no GPU: nvidia-smi is missing or lists none; nothing was run" >&2
  exit 2
fi

cd "$root" && mkdir -p "$out" || exit 1
# Of an earlier run nothing stays: its figures would stand in for those of a step that fails.
rm -f "$out"/{machine,build,tests,memcheck,racecheck,roipool,boxes,kernels,summary}.{txt,json,csv,png}
rm -f "$out"/{nms,detections,small-calls}.json
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python=${PYTHON:-python3}
export out scratch python
export PYTHONPATH=$scratch/site${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 FRCNN_REQUIRE_CUDA=1

# ---- the steps: functions, so that `timeout` can run each in a shell of its own -----------------

machine() { # machine.json: on what the figures of the other files were made
  "$python" - <<'END_PYTHON'
import datetime, importlib.metadata, json, os, platform, subprocess
import torch

def said(command):
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    return lines[-1] if done.returncode == 0 and lines else None

def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

gpu = torch.cuda.get_device_properties(0)
packages = "torchvision numpy pybind11 scikit-build-core pytest hypothesis".split()
facts = {
    "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes"),
    "commit": said("git describe --always --dirty --exclude='*'"),
    "gpu": gpu.name,
    "compute_capability": f"{gpu.major}.{gpu.minor}",
    "multiprocessors": gpu.multi_processor_count,
    "memory_bytes": gpu.total_memory,
    "l2_bytes": gpu.L2_cache_size,
    "driver": said("nvidia-smi --query-gpu=driver_version --format=csv,noheader"),
    "clocks": said("nvidia-smi --query-gpu=clocks.max.sm,clocks.max.mem --format=csv,noheader"),
    "cores": os.cpu_count(),
    "nvcc": said("nvcc --version"),
    "cmake": said("cmake --version | head -n 1"),
    "compute_sanitizer": said("compute-sanitizer --version"),
    "ncu": said("ncu --version"),
    "python": platform.python_version(),
    "torch": f"{torch.__version__} with CUDA {torch.version.cuda}",
} | {package: version(package) for package in packages}
text = json.dumps(facts, indent=1)
print(text)
with open(os.path.join(os.environ["out"], "machine.json"), "w") as file:
    file.write(text + "\n")
END_PYTHON
}

build() {
  "$python" -m pip install --verbose --no-index --no-build-isolation --no-deps \
    --target "$scratch/site" . \
    --config-settings cmake.define.FRCNN_CUDA=ON \
    --config-settings cmake.define.CMAKE_CUDA_ARCHITECTURES=native
  "$python" - <<'END_PYTHON'
import os
import fastrcnn_engine as engine

print(engine.build_info())
where = os.path.dirname(engine.__file__)
assert where.startswith(os.environ["scratch"]), f"{where} hides this build: uninstall that one"
assert engine.build_info()["cuda_device"] == "available", "the CUDA runtime finds no device"
END_PYTHON
}

# Only files with such tests, as others import more packages. Each in a process of its own: where the
# GPU was once made to read what is not there, every later call of that process fails.
tests() {
  local file status=0
  for file in $(grep -lr --include='test_*.py' '^@pytest\.mark\.cuda' tests | sort); do
    "$python" -m pytest -vv -p no:cacheprovider -m cuda --durations=3 \
      --junitxml="$scratch/tests.xml" "$file" || status=$?
    grep -q ' skipped="0"' "$scratch/tests.xml" || {
      echo "a test was skipped, which is a failure here"
      status=1
    }
  done
  return "$status"
}

# The operators' tests, a third of their calls: every type in every way to pool, but the list of hard
# cases in float32 alone, and without autograd, which calls the same kernels. Without torch's cache of
# memory every tensor has bounds of its own, and no CUDA graph can be captured.
sanitize() { # sanitize TOOL WITHOUT [OPTION...]: WITHOUT says which tests are left out, too
  local tool=$1 without=$2
  shift 2
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 9 --kernel-name \
    kns=fastrcnn_engine --tool "$tool" "$@" "$python" -m pytest -vv -p no:cacheprovider -m cuda \
    -k "not ($without or autograd or pads and float64 or equals_cpu[ and (float64 or float16))" \
    tests/ops/test_{roi_pool,box_codec,smooth_l1,detections,nms}.py
}
memcheck() { # the engine checks its calls itself; a bad access ends its kernel, and the tests go on
  sanitize memcheck graph --report-api-errors no --destroy-on-device-error kernel
}
racecheck() { # which writes down every access: those of 60 000 boxes would take all the time
  sanitize racecheck 'graph or more_boxes'
}

roipool() {
  "$python" benchmarks/roipool_bench.py --device cuda --peers torchvision --out "$out/roipool.json"
}

boxes() { # nms.json, detections.json, small-calls.json
  local name status=0
  for name in nms detections small-calls; do
    "$python" "benchmarks/${name/-/_}_bench.py" --device cuda --out "$out/$name.json" || status=$?
  done
  return "$status"
}

# A line of kernels.csv is one launch of ours; the call it belongs to is in the column of ranges.
kernels() {
  cat >"$scratch/calls.py" <<'END_PYTHON'
import sys
import torch
import fastrcnn_engine as engine

sys.path.insert(0, "benchmarks")
from nms_bench import clustered
from roipool_workloads import SCALE, WORKLOADS, Problem

def call(name, function, *arguments, **options):
    print(name)
    torch.cuda.nvtx.range_push(name)
    result = function(*arguments, **options)
    torch.cuda.nvtx.range_pop()
    return result

for workload in (WORKLOADS[0], WORKLOADS[2], WORKLOADS[3]):
    problem = Problem(workload, "cuda")
    for layout in (torch.contiguous_format, torch.channels_last):
        x, grad = (t.contiguous(memory_format=layout) for t in (problem.x, problem.grad))
        pooling = problem.rois, workload.p, SCALE
        label = f"{workload.name} R={workload.r} {str(layout).removeprefix('torch.')}"
        call(f"{label} values", engine.roi_pool, x, *pooling)
        _, argmax = call(f"{label} argmax", engine.roi_pool_with_argmax, x, *pooling)
        narrow = torch.empty_like(argmax, dtype=torch.uint16)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            given = x.to(dtype)
            name = f"{label} {str(dtype).removeprefix('torch.')}"
            if dtype != torch.float32:
                call(f"{name} values", engine.roi_pool, given, *pooling)
            both = engine.roi_pool_with_argmax
            call(f"{name} uint16 argmax", both, given, *pooling, argmax_out=narrow)
        call(f"{label} gradient", engine.roi_pool_backward, grad, narrow, problem.rois, x.shape)
boxes, scores = (t.cuda() for t in clustered(2000))
call("nms 2000 boxes", engine.nms, boxes, scores, 0.3)
classes = torch.arange(6000, device="cuda") // 300
boxes, scores = (t.cuda() for t in clustered(6000))
call("batched_nms 20 x 300 boxes", engine.batched_nms, boxes, scores, classes, 0.3)
classes = torch.arange(10000, device="cuda") // 2000
boxes, scores = (t.cuda() for t in clustered(10000))
call("batched_nms 5 x 2000 boxes", engine.batched_nms, boxes, scores, classes, 0.7)
torch.cuda.synchronize()
END_PYTHON
  local metrics=(
    gpu__time_duration.sum
    launch__registers_per_thread
    launch__shared_mem_per_block
    sm__warps_active.avg.pct_of_peak_sustained_active
    smsp__issue_active.avg.pct_of_peak_sustained_active
    dram__bytes_read.sum
    dram__bytes_write.sum
    dram__throughput.avg.pct_of_peak_sustained_elapsed
    l1tex__data_pipe_lsu_wavefronts.sum
    l1tex__data_pipe_lsu_wavefronts_mem_shared.sum
    l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum
  )
  local names status=0
  names=$(IFS=, && echo "${metrics[*]}")
  ncu --csv --page raw --print-units base --clock-control none --nvtx --metrics "$names" \
    --kernel-name-base demangled --kernel-name regex:fastrcnn_engine \
    --log-file "$out/kernels.csv" "$python" "$scratch/calls.py" || status=$?
  # ncu's own lines begin with ==. It may end well without a figure, where counters are locked.
  grep '^==' "$out/kernels.csv" || true
  sed -i '/^==/d' "$out/kernels.csv"
  (($(wc -l <"$out/kernels.csv") > 2)) && return "$status" # names, units, and then launches
}

export -f machine build tests sanitize memcheck racecheck roipool boxes kernels

clean() { # clean STEP: of a sanitizer that was stopped: it had found nothing until then
  # It begins its lines with nine signs. pytest says ERROR where a test could not be made ready.
  [[ $1 == *check ]] && ! awk '
    /^========= (COMPUTE-SANITIZER|.*SUMMARY: 0 )/ { next }
    /^========= |FAILED|ERROR|Fatal|Segmentation fault/ { found = 1 }
    END { exit !found }' "$out/$1.txt"
}

# ---- running them -------------------------------------------------------------------------------

readonly ALL=525 # seconds for everything: a step gets what is left, if that is less than its own
failed=0
built=no
table=()

report() { # report STEP RESULT SECONDS
  table+=("$(printf '%-10s %6s s  %s' "$1" "$3" "$2")")
  echo "${table[-1]}"
}

step() { # step NAME SECONDS: runs the function with that name; what it says goes to NAME.txt
  local name=$1 limit=$2 began=$SECONDS status=0 result=ok
  ((limit > ALL - SECONDS)) && limit=$((ALL - SECONDS))
  if ((limit <= 0)); then
    failed=1
    report "$name" "NOT RUN: no time is left" 0
    return 1
  fi
  echo "-- $name, at most $limit s"
  timeout --kill-after=5 "$limit" bash -euo pipefail -c "$name" \
    >"$out/$name.txt" 2>&1 </dev/null || status=$?
  case $status in
    0) ;;
    124 | 137) result="FAILED: stopped after $limit s" ;;
    *) result="FAILED with status $status" ;;
  esac
  if [[ $result == *stopped* ]] && clean "$name"; then
    status=0 result="stopped after $limit s, nothing found so far"
  fi
  if ((status)); then
    failed=1
    tail -n 20 "$out/$name.txt"
  fi
  report "$name" "$result" $((SECONDS - began))
  return "$status"
}

step_with() { # step_with PROGRAM NAME SECONDS: no failure where the program is missing
  if command -v "$1" >/dev/null; then
    step "$2" "$3"
  else
    report "$2" "left out: $1 is not on PATH" 0
  fi
}

echo "gpu_check: $(nvidia-smi -L | head -n 1 | sed 's/ (UUID.*//')"
step machine 60
step build 240 && built=yes
if [[ $built == yes ]]; then
  step tests 120
  step roipool 150
  step boxes 90
  step_with ncu kernels 90
  # Last, as nobody knows how long they take, and what they find until they are stopped counts.
  step_with compute-sanitizer memcheck 90
  step_with compute-sanitizer racecheck 90
else # another installation might be found, and checked in place of this one
  for name in tests roipool boxes kernels memcheck racecheck; do
    report "$name" "NOT RUN: the build failed" 0
  done
fi

printf '\n'
printf '%s\n' "${table[@]}" "all $SECONDS s" | tee "$out/summary.txt"
exit "$failed"
