# The image and the compose file, with real containers. Clients run in the containers too.

docker_pid=
compose_up=

try_containers() {
  local broker
  on_exit+=(stop_docker)
  if ! docker_tools || ! start_docker; then
    skip "the image and the compose file: no Docker Engine is to be had here"
    return
  fi
  check "the image is built" quietly docker build -t quipu -f deploy/Dockerfile target/image
  check "it runs as its own user and says its version" output_is "$("$QUIPU" --version)" docker run --rm --network none quipu --version
  compose_up=yes
  check "three brokers are started" quietly compose up -d
  if [ "$(docker ps -q | wc -l)" -ne 3 ]; then
    skip "what the three brokers do: they were not started"
    return
  fi
  for broker in 1 2 3; do check "broker $broker is healthy" within 90 healthy "$broker"; done
  check "the cluster is well" within 30 quipu_in 1 cluster status
  check "a topic with three replicas is created" quietly quipu_in 1 topic create orders --partitions 3 --replication-factor 3
  check "1,000 records are produced" produce 1 1 1000
  lose_a_broker
  check "a broker whose process dies is started again" dies_and_returns 2
  check "each is restarted in turn" rolling_restart
  check "every record is there once, in the end" consumed 2 3000
  check "all is taken down" quietly compose down -v
  compose_up=
}

lose_a_broker() {
  local leader=$(leader_of_first)
  local other=$((leader % 3 + 1))
  check "the leader's container (broker $leader) is killed" quietly docker kill "$(container "$leader")"
  check "1,000 more records are produced" produce "$other" 1001 2000
  check "2,000 are consumed, each once" consumed "$other" 2000
  check "the status says which node is gone" status_names "$other" "$leader"
  check "it is started again" quietly docker start "$(container "$leader")"
  check "the cluster is well again" within 60 quipu_in "$other" cluster status
  check "1,000 more records are produced" produce "$leader" 2001 3000
}

docker_tools() {
  if command -v dockerd >/dev/null && command -v docker-compose >/dev/null; then return 0; fi
  [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null || return 1
  echo "installing Docker Engine and docker-compose"
  apt-get -qq update >"$log" 2>&1 || return 1
  DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install docker.io docker-compose iptables >"$log" 2>&1
}

start_docker() {
  [ "$(id -u)" -eq 0 ] || return 1
  local root=$scratch/docker
  # A path of a socket has at most 107 bytes.
  docker_run=$(mktemp -d /tmp/quipu-docker.XXXXXX)
  export DOCKER_HOST=unix://$docker_run/socket
  unshare --net sh -c 'ip link set lo up && exec dockerd "$@"' sh --data-root "$root" --exec-root "$docker_run/exec" \
    --pidfile "$docker_run/pid" --host "$DOCKER_HOST" >"$scratch/dockerd.log" 2>&1 </dev/null &
  docker_pid=$!
  within 60 docker info || { tail -n 5 "$scratch/dockerd.log"; return 1; }
}

stop_docker() {
  [ -n "$docker_pid" ] || return 0
  [ -z "$compose_up" ] || compose down -v >/dev/null 2>&1 || true
  kill -TERM "$docker_pid" 2>/dev/null || true
  wait "$docker_pid" 2>/dev/null || true
  docker_pid=
  rm -rf "$docker_run"
}

compose() { docker-compose -p quipu -f deploy/compose.yaml "$@"; }
container() { compose ps -q "broker-$1"; }
inspect() { docker inspect --format "$2" "$(container "$1")"; }
healthy() { [ "$(inspect "$1" '{{.State.Health.Status}}')" = healthy ]; }
quipu_in() { docker exec -i "$(container "$1")" /quipu "${@:2}" </dev/null; }

produce() { seq "$2" "$3" | quietly docker exec -i "$(container "$1")" /quipu produce orders; }

consumed() {
  quipu_in "$1" consume orders --format raw 2>"$log" | sort -n >"$scratch/consumed"
  seq "$2" | cmp - "$scratch/consumed"
}

leader_of_first() {
  quipu_in 1 topic describe orders --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["partition_states"][0]["leader"]["id"])'
}

status_names() {
  refuses_with "node $2 is not reached" quipu_in "$1" cluster status
}

# kill -9 from outside is a crash to Docker, where `docker kill` is its user's wish.
dies_and_returns() {
  local before=$(inspect "$1" '{{.State.Pid}}')
  kill -9 "$before"
  within 30 has_other_pid "$1" "$before" && within 60 quipu_in "$1" cluster status
}

has_other_pid() {
  local now=$(inspect "$1" '{{.State.Pid}}')
  [ "$now" != "$2" ] && [ "$now" != 0 ]
}

rolling_restart() {
  local broker
  for broker in 1 2 3; do
    quietly compose stop "broker-$broker" || return 1
    output_is 0 inspect_stopped "$broker" || return 1
    quietly compose start "broker-$broker" || return 1
    within 60 quipu_in "$broker" cluster status || return 1
  done
}

inspect_stopped() { docker inspect --format '{{.State.ExitCode}}' "$(compose ps -a -q "broker-$1")"; }
