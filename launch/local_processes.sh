#!/usr/bin/env bash
# Runs an experiment as N processes on this machine's CPU, which train together.
#
#   launch/local_processes.sh 2 --config=configs/digits_pd.py --workdir=runs/digits2
#
# PORT is where they meet (default 9876), DEVICES the virtual devices of each (default 1). When one
# fails the others stop too. Exit code 75: stopped by a signal; the same command goes on.
set -uo pipefail
if [ $# -lt 2 ]; then
  sed -n '2,7p' "$0" >&2
  exit 2
fi
count=$1
shift
export JAX_PLATFORMS=cpu
export XLA_FLAGS="--xla_force_host_platform_device_count=${DEVICES:-1} ${XLA_FLAGS:-}"

pids=()
trap 'kill -TERM "${pids[@]}" 2>/dev/null' INT TERM
trap 'kill -HUP "${pids[@]}" 2>/dev/null' HUP # of which a shell and the terminal each send one
for ((i = 0; i < count; i++)); do
  # In a session of its own, so that Ctrl-C and a terminal's end come from here alone.
  setsid python -m pdistill.main --coordinator="127.0.0.1:${PORT:-9876}" \
    --num_processes="$count" --process_id="$i" "$@" &
  pids+=($!)
done

code=0
for pid in "${pids[@]}"; do
  wait "$pid"
  found=$?
  while kill -0 "$pid" 2>/dev/null; do # the trap has ended the wait, not the process
    wait "$pid"
    found=$?
  done
  # 75 says that the same command goes on, unless another process says what is wrong.
  if [ "$found" -ne 0 ] && { [ "$code" -eq 0 ] || [ "$code" -eq 75 ]; }; then code=$found; fi
done
exit "$code"
