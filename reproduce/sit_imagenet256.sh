#!/usr/bin/env bash
# SiT-XL/2, a teacher of latents of ImageNet 256x256 (Ma et al. 2024), and its student by MeanFlow
# (Geng et al. 2025), which starts from its parameters, in one evaluation.
#
# Download from https://github.com/willisma/SiT, "Sampling":
#   SiT-XL-2-256x256.pt
# from https://huggingface.co/stabilityai/sd-vae-ft-ema the folder, which is its codec:
#   sd-vae-ft-ema/config.json, sd-vae-ft-ema/diffusion_pytorch_model.safetensors
# from https://github.com/openai/guided-diffusion/tree/main/evaluations what FID is measured against:
#   VIRTUAL_imagenet256_labeled.npz
# and ImageNet's training images (ILSVRC 2012) from https://image-net.org, unpacked into $IMAGENET.
. "$(dirname "$0")/common.sh"

imagenet256
missing "$RUN/teacher" pdistill convert --from=sit --source="$DOWNLOADS/SiT-XL-2-256x256.pt" \
  --codec="$RUN/codec" --num_steps="$(steps 250)" --out="$RUN/teacher"
measure "$RUN/teacher" "$DOWNLOADS/VIRTUAL_imagenet256_labeled.npz" --guidance=0.5

brief 1 '--config.stages[1].measured_at=1,'
pdistill train imagenet256_mean_flow:imported --config.teacher="$RUN/teacher" \
  --workdir="$RUN/run" "${FLAGS[@]}"
measure "$RUN/run/mean_flow" "$DOWNLOADS/VIRTUAL_imagenet256_labeled.npz" --num_steps=1
