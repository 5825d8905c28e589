#!/usr/bin/env bash
# EDM's teacher of ImageNet 64x64 (Karras et al. 2022), by its deterministic sampler and its
# stochastic one, and its student by distribution matching (DMD2, Yin et al. 2024) in one evaluation.
#
# Download from https://github.com/NVlabs/edm, "Pre-trained models" and "Calculating FID":
#   edm-imagenet-64x64-cond-adm.pkl
#   imagenet-64x64.npz
# and ImageNet's training images (ILSVRC 2012) from https://image-net.org, unpacked into $IMAGENET.
. "$(dirname "$0")/common.sh"

missing "$DATA/imagenet64" pdistill prepare --images="$IMAGENET" --name=imagenet64 \
  --resolution="$(side 64)" --resize=area
missing "$RUN/teacher" pdistill convert --from=edm --num_steps="$(steps 40)" \
  --source="$DOWNLOADS/edm-imagenet-64x64-cond-adm.pkl" --out="$RUN/teacher"
measure "$RUN/teacher" "$DOWNLOADS/imagenet-64x64.npz" --solver=edm
measure "$RUN/teacher" "$DOWNLOADS/imagenet-64x64.npz" --solver=edm:40,0.05,50,1.003 \
  --num_steps="$(steps 256)"

brief 1 '--config.stages[1].select='
pdistill train imagenet64_dmd2:imported --config.teacher="$RUN/teacher" --workdir="$RUN/run" \
  "${FLAGS[@]}"
measure "$RUN/run/dmd" "$DOWNLOADS/imagenet-64x64.npz"
