# Helpers for the scripts beside it: `source` this file. They take --quipu PATH (else target/release/quipu) and --data DIR (else
# beside the binary), start brokers there that listen on loopback, and end them and remove the directory when they end.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
quipu=$here/target/release/quipu
base=

usage() {
  echo "usage: $0 [--quipu PATH] [--data DIR]" >&2
  exit 2
}

while [ "$#" -gt 0 ]; do
  case $1 in
    --quipu) quipu=${2:?} ;;
    --data) base=${2:?} ;;
    *) usage ;;
  esac
  shift 2
done
[ -x "$quipu" ] || { echo "no binary at $quipu: cargo build --release -p quipu" >&2; exit 1; }
data=$(mktemp -d "${base:-$(dirname "$quipu")}/quipu-bench.XXXXXX")
# Below the ports that the system gives to outgoing connections.
port=$((20000 + $$ % 10000))
declare -A pids=()

clean_up() {
  local node
  for node in "${!pids[@]}"; do kill -9 "${pids[$node]}" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$data"
}
trap clean_up EXIT

address() { echo "127.0.0.1:$((port + 3 * $1))"; }
http_address() { echo "127.0.0.1:$((port + 3 * $1 + 1))"; }
kafka_address() { echo "127.0.0.1:$((port + 3 * $1 + 2))"; }

# start_node N MEMBERSHIP...: starts a broker.
start_node() {
  local node=$1
  shift
  "$quipu" server --node-id "$node" --data-dir "$data/$node" "$@" --grpc-listen "$(address "$node")" \
    --http-listen "$(http_address "$node")" --kafka-listen "$(kafka_address "$node")" >>"$data/$node.log" 2>&1 &
  pids[$node]=$!
}

# start_cluster N...: starts these brokers as one cluster, and waits until all are ready.
start_cluster() {
  local node voters=
  for node in "$@"; do voters+=${voters:+,}$node@$(address "$node"); done
  for node in "$@"; do start_node "$node" --voters "$voters"; done
  for node in "$@"; do until is_ready "$node"; do must_run "$node"; sleep 0.05; done; done
}

must_run() {
  kill -0 "${pids[$1]}" 2>/dev/null || { tail -n 20 "$data/$1.log" >&2; exit 1; }
}

# In a shell of its own, for a connection that is refused ends it.
is_ready() (
  exec 3<>"/dev/tcp/127.0.0.1/$((port + 3 * $1 + 1))"
  printf 'GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
  read -r _ status _ <&3 && [ "$status" = 200 ]
) 2>/dev/null

# ticks PID: processor time used, user and system, in hundredths of a second.
ticks() { sed 's/.*) //' "/proc/$1/stat" | awk '{ print $12 + $13 }'; }

# ticks_of N...: that of several brokers together.
ticks_of() {
  local node sum=0
  for node in "$@"; do sum=$((sum + $(ticks "${pids[$node]}"))); done
  echo "$sum"
}

# seconds_since NANOSECONDS
seconds_since() { awk -v since="$1" -v now="$(date +%s%N)" 'BEGIN { printf "%.2f", (now - since) / 1e9 }'; }
