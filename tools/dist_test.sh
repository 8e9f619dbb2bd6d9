#!/usr/bin/env bash
# Evaluate on several devices of one machine (or several: NNODES, NODE_RANK, MASTER_ADDR, PORT).
# Usage: tools/dist_test.sh CONFIG CHECKPOINT DEVICES [flags of tools/test.py]
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: $0 CONFIG CHECKPOINT DEVICES [flags of tools/test.py]" >&2
    exit 2
fi
config=$1 checkpoint=$2 devices=$3
shift 3
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$devices" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    "$(dirname "$0")/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
