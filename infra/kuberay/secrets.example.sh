#!/usr/bin/env bash
# The two secrets that the manifests name. Nothing of them is written to a file of this repository.
set -euo pipefail

# Ray's token: whoever has it may run anything on the cluster.
kubectl --namespace rayvec create secret generic rayvec-ray-token \
  --from-literal=auth_token="$(python3 -c 'import secrets; print(secrets.token_hex(32))')"

# API keys of the search service: hashes only. The keys themselves are printed, once.
keys=$(mktemp)
trap 'rm -f "$keys"' EXIT
python3 -m rayvec.serving.security "$keys" alice
python3 -m rayvec.serving.security "$keys" prometheus
kubectl --namespace rayvec create secret generic rayvec-api-keys --from-file=keys.txt="$keys"
