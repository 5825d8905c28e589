#!/usr/bin/env bash
# EDM's teacher of CIFAR-10 without labels (Karras et al. 2022), and its student by easy consistency
# tuning (ECT, Geng et al. 2024) in one evaluation and in two.
#
# Download from https://github.com/NVlabs/edm, "Pre-trained models" and "Calculating FID":
#   edm-cifar10-32x32-uncond-vp.pkl
#   cifar10-32x32.npz
. "$(dirname "$0")/common.sh"

missing "$DATA/cifar10" pdistill prepare cifar10
missing "$RUN/teacher" pdistill convert --from=edm --num_steps="$(steps 18)" \
  --source="$DOWNLOADS/edm-cifar10-32x32-uncond-vp.pkl" --out="$RUN/teacher"
measure "$RUN/teacher" "$DOWNLOADS/cifar10-32x32.npz" --solver=edm

brief 1 '--config.stages[1].measured_at=1,'
pdistill train cifar10_ect:imported --config.teacher="$RUN/teacher" --workdir="$RUN/run" "${FLAGS[@]}"
measure "$RUN/run/ect" "$DOWNLOADS/cifar10-32x32.npz" --num_steps=1
measure "$RUN/run/ect" "$DOWNLOADS/cifar10-32x32.npz" --num_steps=2
