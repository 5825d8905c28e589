#!/usr/bin/env bash
# Tries launch/slurm.sbatch on a real SLURM of this machine, which it starts and ends again.
#
#   apt-get install slurm-wlm munge   # once, on Debian or Ubuntu
#   bash launch/test/slurm.sh
#
# Two nodes of four CPUs, with their daemons and files in a temporary folder; nothing in /etc is read
# or changed. launch/test/slurm.py says what the jobs must do. It takes about eight minutes on two
# cores, prints a log, and ends with 0 if all is well; if not, the folder stays.
set -euo pipefail
root=$(realpath "$(dirname "$0")/../..")
PATH=$PATH:/usr/sbin:/sbin
for program in munged slurmctld slurmd sbatch python; do
  command -v "$program" >/dev/null || { echo "error: there is no $program here" >&2; exit 2; }
done
folder=$(mktemp -d)
chmod 755 "$folder" # munged refuses a socket that others could not reach

host=$(hostname -s)
# Two names of this machine, as JAX asks the first node's for its address.
nodes=("$host" localhost)
user=$(id -un)
cat >"$folder/slurm.conf" <<END
ClusterName=test
SlurmctldHost=$host
SlurmctldPort=26817
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
# A job that is put into the queue again waits until its credential is over: two minutes otherwise.
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/%n.log
# Without control groups, which a container may not have.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
NodeName=${nodes[0]} NodeHostname=$host NodeAddr=127.0.0.1 Port=26818 CPUs=4
NodeName=${nodes[1]} NodeHostname=$host NodeAddr=127.0.0.1 Port=26819 CPUs=4
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
export SLURM_CONF=$folder/slurm.conf
mkdir "$folder/state" "${nodes[@]/#/$folder/}"
head -c 1024 /dev/urandom >"$folder/munge.key"
chmod 600 "$folder/munge.key"

finish() {
  code=$?
  trap - EXIT
  timeout 20 scancel --quiet --user="$user" || true
  # Daemons, and what they have started: all that know this folder.
  for file in $(grep -lsz "^SLURM_CONF=$SLURM_CONF$" /proc/[0-9]*/environ); do
    kill -KILL "$(basename "$(dirname "$file")")" 2>/dev/null || true
  done
  if [ "$code" -eq 0 ]; then rm -rf "$folder"; else echo "see $folder" >&2; fi
  exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM

munged --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
  --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --seed-file="$folder/munged.seed"
slurmctld
for node in "${nodes[@]}"; do slurmd -N "$node"; done
echo "$(slurmctld -V), nodes ${nodes[*]}"

export JAX_PLATFORMS=cpu PYTHONPATH=$root:$root/tests
python "$root/launch/test/slurm.py" "$folder"
