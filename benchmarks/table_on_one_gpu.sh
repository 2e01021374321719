#!/bin/bash
# A table by many commands side by side on one GPU, for as many seconds as there are:
#
#   benchmarks/table_on_one_gpu.sh 16 600 configs/glue-4l-312.yaml data=GLUE corpus.path=WIKI.txt.gz tracking.mlflow=false
#
# 16 commands, of one core each; after 600 s they are asked to save and to stop, and the same line goes on from there.
# Prints what the commands began and how they ended.
set -u
count=$1 seconds=$2
shift 2
refbert=${REFBERT:-refbert}
export OMP_NUM_THREADS=1
# Small students launch more than they compute: with MPS the kernels of several processes run at the same time.
if command -v nvidia-cuda-mps-control > /dev/null; then nvidia-cuda-mps-control -d && mps=yes; fi
logs=$(mktemp -d)
for number in $(seq "$count"); do
    $refbert run "$@" --on in-process launch.threads=1 > "$logs/$number.log" 2>&1 &
done
end=$((SECONDS + seconds))
while [ $SECONDS -lt $end ] && [ -n "$(jobs -r)" ]; do sleep 1; done
took=$((SECONDS - end + seconds))
for job in $(jobs -rp); do kill -TERM "$job"; done
wait
if [ -n "${mps:-}" ]; then echo quit | nvidia-cuda-mps-control; fi
grep -h "^cell \|^refbert: " "$logs"/*.log | sort | uniq -c
tail -n 2 "$logs/1.log"
echo "$took s; what each command said: $logs"
