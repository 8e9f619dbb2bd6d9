#!/usr/bin/env bash
# Train on several devices of one machine (or several: NNODES, NODE_RANK, MASTER_ADDR, PORT).
# Usage: tools/dist_train.sh CONFIG DEVICES [flags of tools/train.py]
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG DEVICES [flags of tools/train.py]" >&2
    exit 2
fi
config=$1 devices=$2
shift 2
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$devices" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"
