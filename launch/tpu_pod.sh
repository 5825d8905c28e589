#!/usr/bin/env bash
# Runs an experiment on every worker of a Cloud TPU slice, one process a host.
#
#   TPU=my-tpu ZONE=us-central2-b launch/tpu_pod.sh \
#       --config=configs/digits_pd.py --workdir=gs-mounted/or/shared/path
#
# The slice exists already, gcloud is logged in, and --workdir is a path all workers share.
# The checkout is copied to each worker and installed there; the same command again resumes.
set -euo pipefail
if [ $# -lt 1 ] || [ -z "${TPU:-}" ] || [ -z "${ZONE:-}" ]; then
  sed -n '2,9p' "$0" >&2
  exit 2
fi
cd "$(dirname "$0")/.."

tarball=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$tarball"' EXIT
git archive --format=tar.gz -o "$tarball" HEAD
gcloud compute tpus tpu-vm scp "$tarball" "$TPU:pdistill.tar.gz" --worker=all --zone="$ZONE"

arguments=$(printf '%q ' "$@")
gcloud compute tpus tpu-vm ssh "$TPU" --worker=all --zone="$ZONE" --command="
  set -e
  mkdir -p pdistill && tar -xzf pdistill.tar.gz -C pdistill && cd pdistill
  python3 -m venv .venv && . .venv/bin/activate && pip install -q -e '.[tpu]'
  python -m pdistill.main --distributed $arguments"
