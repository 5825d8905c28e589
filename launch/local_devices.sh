#!/usr/bin/env bash
# Runs an experiment on N virtual devices of this machine's CPU, to try a mesh without a cluster.
#
#   launch/local_devices.sh 8 --config=configs/digits_pd.py --workdir=runs/digits8 \
#       --config.mesh.data=2 --config.mesh.fsdp=4
set -euo pipefail
if [ $# -lt 2 ]; then
  sed -n '2,5p' "$0" >&2
  exit 2
fi
devices=$1
shift
export JAX_PLATFORMS=cpu
export XLA_FLAGS="--xla_force_host_platform_device_count=$devices ${XLA_FLAGS:-}"
exec python -m pdistill.main "$@"
