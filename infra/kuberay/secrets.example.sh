#!/usr/bin/env bash
# The two secrets that the manifests name; run again, it replaces both, and pods that are made then have the new ones. It needs
# kubectl, and a python that has rayvec (`make setup`, `source .venv/bin/activate`). Nothing is written to a file of this
# repository.
set -euo pipefail

put() {
  kubectl --namespace rayvec create secret generic "$@" --dry-run=client -o yaml | kubectl apply -f -
}

# API keys of the search service: hashes only. The keys themselves are printed, once.
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python -m rayvec.serving.security "$folder/keys.txt" alice
python -m rayvec.serving.security "$folder/keys.txt" prometheus
# Ray's token: whoever has it may run anything on the cluster.
(umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$folder/auth_token")

put rayvec-api-keys --from-file="$folder/keys.txt"
put rayvec-ray-token --from-file="$folder/auth_token"
