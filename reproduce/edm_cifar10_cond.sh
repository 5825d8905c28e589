#!/usr/bin/env bash
# EDM's teacher of CIFAR-10 with labels (Karras et al. 2022), and its student by distribution
# matching (DMD2, Yin et al. 2024, with FastGen's numbers for CIFAR-10) in one evaluation.
#
# Download from https://github.com/NVlabs/edm, "Pre-trained models" and "Calculating FID":
#   edm-cifar10-32x32-cond-vp.pkl
#   cifar10-32x32.npz
. "$(dirname "$0")/common.sh"

missing "$DATA/cifar10" pdistill prepare cifar10
missing "$RUN/teacher" pdistill convert --from=edm --num_steps="$(steps 18)" \
  --source="$DOWNLOADS/edm-cifar10-32x32-cond-vp.pkl" --out="$RUN/teacher"
measure "$RUN/teacher" "$DOWNLOADS/cifar10-32x32.npz" --solver=edm

brief 1 '--config.stages[1].select='
pdistill train cifar10_dmd2:imported --config.teacher="$RUN/teacher" --workdir="$RUN/run" "${FLAGS[@]}"
measure "$RUN/run/dmd" "$DOWNLOADS/cifar10-32x32.npz"
