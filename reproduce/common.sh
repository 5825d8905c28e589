# What the scripts here share: where things are, and how much of an experiment is done.
#
#   DOWNLOADS  the folder with the files that a script lists (default: downloads)
#   IMAGENET   the folder of ImageNet's training images, a sub-folder a class (/data/imagenet)
#   RUNS       the folder for what is made (runs)
#   TFDS_DATA_DIR  the folder of prepared data sets (~/tensorflow_datasets)
#   SCALE      full, or small: tiny files of the same layout, images of 8 x 8, two updates a stage
set -euo pipefail

DOWNLOADS=${DOWNLOADS:-downloads}
IMAGENET=${IMAGENET:-/data/imagenet}
DATA=${TFDS_DATA_DIR:-$HOME/tensorflow_datasets}
RUN=${RUNS:-runs}/$(basename "$0" .sh)
SCALE=${SCALE:-full}
FLAGS=(--config.seed=0)  # of a run
case $SCALE in
  full) MEASURE=(--metrics=fid --num_samples=50000) ;;
  small)
    MEASURE=(--metrics=fd_pixels --num_samples=16)
    FLAGS+=(
      --config.evaluation.metrics=fd_pixels --config.evaluation.num_samples=16
      --config.evaluation.batch_size=16 --config.mesh.fsdp=1
    )
    ;;
  *) echo "error: SCALE is full or small; got $SCALE" >&2; exit 2 ;;
esac
mkdir -p "$RUN"

# missing PATH COMMAND...: runs a command that makes PATH, unless it is there.
missing() {
  [ -e "$1" ] || "${@:2}"
}

# side PIXELS: prints the side of images, PIXELS or that of small scale.
side() {
  [ "$SCALE" = small ] && echo 8 || echo "$1"
}

# steps NUMBER: prints the steps of a teacher's sampler, NUMBER or those of small scale.
steps() {
  [ "$SCALE" = small ] && echo 2 || echo "$1"
}

# brief STAGE FLAG...: at small scale, adds flags that make the stage with that number brief.
brief() {
  [ "$SCALE" = small ] || return 0
  local loop="--config.stages[$1].loop"
  FLAGS+=("$loop.num_updates=2" "$loop.batch_size=8" "$loop.substeps=1" "$loop.save_every=2"
    "$loop.log_every=2" "${@:2}")
}

# imagenet256: makes what teachers of latents share, their codec and ImageNet's latents.
imagenet256() {
  missing "$RUN/codec" pdistill convert --from=diffusers --source="$DOWNLOADS/sd-vae-ft-ema" \
    --out="$RUN/codec"
  missing "$DATA/imagenet256" pdistill prepare --images="$IMAGENET" --name=imagenet256 \
    --resolution="$(side 256)" --codec="$RUN/codec"
}

# measure MODEL REFERENCE FLAG...: adds a row of a model to rows.jsonl, and prints it; once.
measure() {
  ! grep -qxF -- "$*" "$RUN/measured" 2> /dev/null || return 0
  pdistill evaluate --model="$1" --reference="$2" "${MEASURE[@]}" --out="$RUN/rows.jsonl" "${@:3}"
  echo "$*" >> "$RUN/measured"
}
