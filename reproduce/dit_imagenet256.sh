#!/usr/bin/env bash
# DiT-XL/2, a teacher of latents of ImageNet 256x256 (Peebles & Xie 2022), and its students by guided
# distillation (Meng et al. 2023) in 256 evaluations down to one.
#
# Download from https://github.com/facebookresearch/DiT, "Sampling":
#   DiT-XL-2-256x256.pt
# from https://huggingface.co/stabilityai/sd-vae-ft-ema the folder, which is its codec:
#   sd-vae-ft-ema/config.json, sd-vae-ft-ema/diffusion_pytorch_model.safetensors
# from https://github.com/openai/guided-diffusion/tree/main/evaluations what FID is measured against:
#   VIRTUAL_imagenet256_labeled.npz
# and ImageNet's training images (ILSVRC 2012) from https://image-net.org, unpacked into $IMAGENET.
. "$(dirname "$0")/common.sh"

imagenet256
missing "$RUN/teacher" pdistill convert --from=dit --source="$DOWNLOADS/DiT-XL-2-256x256.pt" \
  --codec="$RUN/codec" --num_steps="$(steps 250)" --out="$RUN/teacher"
measure "$RUN/teacher" "$DOWNLOADS/VIRTUAL_imagenet256_labeled.npz" --guidance=0.5

brief 1 '--config.stages[1].measured_at=2,'
brief 2 '--config.stages[2].start_steps=2' '--config.stages[2].long_rounds=0'
pdistill train imagenet256_guided:imported --config.teacher="$RUN/teacher" --workdir="$RUN/run" \
  "${FLAGS[@]}"
measure "$RUN/run/guided_progressive/1" "$DOWNLOADS/VIRTUAL_imagenet256_labeled.npz" --guidance=0.5
