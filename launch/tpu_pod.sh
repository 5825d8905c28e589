#!/usr/bin/env bash
# Runs an experiment on every worker of a Cloud TPU slice, one process a host.
#
#   export TPU=my-tpu ZONE=us-central2-b
#   export TFDS_DATA_DIR=/shared/data                      # of prepared sets, on the workers
#   launch/tpu_pod.sh create v4-32 tpu-ubuntu2204-base     # type, and version of its system
#   launch/tpu_pod.sh run --config=configs/cifar10_pd.py --workdir=/shared/runs/cifar10
#   launch/tpu_pod.sh collect /shared/runs/cifar10 runs/   # from the first worker
#   launch/tpu_pod.sh delete
#
# gcloud is logged in, and --workdir is a path that all workers share. TFDS_DATA_DIR, if it is set,
# is handed to the workers, which all find the same data sets there.
# `run` copies the checkout's HEAD to each worker and installs it there. As long as the run ends with
# 75 (stopped by a signal, saved) it is started again; by hand, the same command goes on where it
# stopped. Without the connection to the workers their run goes on, and another one is refused.
# With DRY_RUN=1 in front, the commands are printed and nothing is done.
set -euo pipefail
usage() {
  sed -n '2,16p' "$0" >&2
  exit 2
}
if [ $# -lt 1 ] || [ -z "${TPU:-}" ] || [ -z "${ZONE:-}" ]; then usage; fi
cd "$(dirname "$0")/.."
do_or_print() {
  if [ -z "${DRY_RUN:-}" ]; then
    "$@"
    return
  fi
  local word
  for word in "$@"; do
    if [[ $word =~ [^A-Za-z0-9_./:=,-] ]]; then word="'${word//\'/\'\\\'\'}'"; fi
    printf '%s ' "$word"
  done
  echo
}
tpu_vm() {
  local action=$1
  shift
  do_or_print gcloud compute tpus tpu-vm "$action" --zone="$ZONE" "$@"
}

command=$1
shift
case "$command" in
create)
  [ $# -eq 2 ] || usage
  tpu_vm create "$TPU" --accelerator-type="$1" --version="$2"
  ;;
run)
  tarball=$(mktemp --suffix=.tar.gz)
  trap 'rm -f "$tarball"' EXIT
  do_or_print git archive --format=tar.gz -o "$tarball" HEAD
  tpu_vm scp "$tarball" "$TPU:pdistill.tar.gz" --worker=all
  arguments=$(printf '%q ' "$@")
  data=${TFDS_DATA_DIR:+export $(printf '%q' "TFDS_DATA_DIR=$TFDS_DATA_DIR")}
  tpu_vm ssh "$TPU" --worker=all --command="
    set -e
    $data
    exec 9>>pdistill.lock
    flock -n 9 || { echo 'a run goes on here already; nothing is installed' >&2; exit 1; }
    mkdir -p pdistill && tar -xzf pdistill.tar.gz -C pdistill && cd pdistill
    python3 -m venv .venv && . .venv/bin/activate && pip install -q -e '.[tpu]'
    code=75
    while [ \$code -eq 75 ]; do
      code=0
      python -m pdistill.main --distributed --join_timeout=300 $arguments || code=\$?
    done
    exit \$code"
  ;;
collect)
  [ $# -eq 2 ] || usage
  tpu_vm scp --recurse "$TPU:$1" "$2" --worker=0
  ;;
delete)
  tpu_vm delete "$TPU"
  ;;
*) usage ;;
esac
