# Helpers for the runners under tests/: `source` this file. Needs $QUIPU, or takes (and builds) target/release/quipu.
# A runner gets a scratch directory in $scratch, which goes away with it, as do the brokers that it started.

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
passed=0
failed=0
broker_pid=

if [ -z "${QUIPU:-}" ]; then
  (cd "$repository" && cargo build --quiet --release --locked -p quipu)
  QUIPU=$repository/target/release/quipu
fi

# Beside the binary, not in /tmp, which may be a file system in memory.
scratch=$(mktemp -d "$(dirname "$QUIPU")/quipu-run.XXXXXX")

clean_up() {
  [ -z "$broker_pid" ] || kill -9 "$broker_pid" 2>/dev/null || true
  if [ "$failed" -gt 0 ]; then
    echo "left for a look: $scratch" >&2
  else
    rm -rf "$scratch"
  fi
}
trap clean_up EXIT

# check TEXT COMMAND...: runs the command and counts it as a check of that name.
check() {
  local text=$1
  shift
  if "$@"; then
    passed=$((passed + 1))
    echo "ok      $text"
  else
    failed=$((failed + 1))
    echo "FAILED  $text"
  fi
}

# The last line of a runner: prints the count and becomes its exit status.
summary() {
  echo "$passed passed, $failed failed"
  [ "$failed" -eq 0 ]
}

# A port for a server that is killed and started again: not one of those that the system gives to outgoing connections, since a
# client that tries to connect again while the server is down could be given just that one, and the server then not bind it.
free_port() {
  python3 - <<'PYTHON'
import random, socket

while True:
    port = random.randrange(20000, 32000)
    with socket.socket() as s:
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            continue
    print(port)
    break
PYTHON
}

# start_broker DATA_DIR: starts a broker, on the same ports each time, and waits until it is ready. It does not inherit
# descriptors 3 and 4: a pipe that a runner feeds must end when the runner closes it.
start_broker() {
  grpc_port=${grpc_port:-$(free_port)}
  http_port=${http_port:-$(free_port)}
  export QUIPU_BROKER=127.0.0.1:$grpc_port
  "$QUIPU" dev --data-dir "$1" --kafka-listen 127.0.0.1:0 --grpc-listen "$QUIPU_BROKER" --http-listen "127.0.0.1:$http_port" \
    >>"$scratch/broker.log" 2>&1 </dev/null 3>&- 4>&- &
  broker_pid=$!
  local tries
  for ((tries = 0; tries < 1200; tries++)); do
    if broker_ready; then return 0; fi
    if ! kill -0 "$broker_pid" 2>/dev/null; then
      echo "the broker ended before it was ready:" >&2
      tail -n 20 "$scratch/broker.log" >&2
      return 1
    fi
    sleep 0.05
  done
  echo "the broker was not ready within a minute" >&2
  return 1
}

broker_ready() {
  local status=
  exec 3<>"/dev/tcp/127.0.0.1/$http_port" || return 1
  printf 'GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
  read -r _ status _ <&3 || true
  exec 3>&-
  [ "$status" = 200 ]
} 2>/dev/null

kill_broker() {
  {
    kill -9 "$broker_pid"
    wait "$broker_pid" || true
  } 2>/dev/null
  broker_pid=
}

# stop_broker: asks the broker to end; its exit status becomes this function's.
stop_broker() {
  local status=0
  kill -TERM "$broker_pid"
  wait "$broker_pid" || status=$?
  broker_pid=
  return "$status"
}
