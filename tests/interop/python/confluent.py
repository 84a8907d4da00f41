"""confluent-kafka: librdkafka."""

import time

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
)
from at_work import at_work
from both import check_grpc
from features import BOOTSTRAP, CODECS, LARGE, check, require, same, topic
from groups import check_groups

admin = AdminClient({"bootstrap.servers": BOOTSTRAP})


def wait(futures):
    return [future.result(30) for future in futures.values()]


def new_topic(name, partitions=1, **settings):
    name = topic(name)
    wait(admin.create_topics([NewTopic(name, partitions, 1, config=settings)]))
    return name


def produce(name, records, **settings):
    config = {"bootstrap.servers": BOOTSTRAP}
    config.update({key.replace("_", "."): value for key, value in settings.items()})
    producer = Producer(config)
    failed, offsets = [], []

    def told(error, message):
        failed.append(error) if error else offsets.append(message.offset())

    for record in records:
        producer.produce(name, on_delivery=told, **record)
    require(producer.flush(30) == 0, "not all were delivered in time")
    require(not failed, failed[:1])
    return offsets


def consumer():
    config = {"bootstrap.servers": BOOTSTRAP, "group.id": "none", "enable.auto.commit": False}
    return Consumer({**config, "auto.offset.reset": "earliest"})


def read(name, count, offset=0, partition=0):
    reader = consumer()
    reader.assign([TopicPartition(name, partition, offset)])
    records, end = [], time.monotonic() + 15
    while len(records) < count and time.monotonic() < end:
        message = reader.poll(1)
        if message is not None:
            require(message.error() is None, message.error())
            records.append(message)
    reader.close()
    return records


def create_and_list():
    name = new_topic("list", 3)
    found = admin.list_topics(timeout=10).topics
    same(sorted(found[name].partitions), [0, 1, 2])


def auto_create():
    name = topic("auto")
    produce(name, [{"value": b"a"}])
    same(len(read(name, 1)), 1)


def codec(compression):
    def run():
        name = new_topic(compression)
        records = [{"key": b"k%d" % i, "value": b"value %d " % i * 20} for i in range(200)]
        produce(name, records, compression_type=compression, linger_ms=20)
        same([(r.key(), r.value()) for r in read(name, 200)], [(r["key"], r["value"]) for r in records])

    return run


def headers():
    name = new_topic("headers")
    wanted = [("a", b"1"), ("b", b""), ("a", b"2")]
    produce(name, [{"value": b"v", "headers": wanted}])
    same(read(name, 1)[0].headers(), wanted)


def acks(level):
    def run():
        name = new_topic("acks")
        produce(name, [{"value": b"%d" % i} for i in range(50)], acks=level)
        same(len(read(name, 50)), 50)

    return run


def idempotence():
    name = new_topic("idempotence")
    offsets = produce(name, [{"value": b"%d" % i} for i in range(500)], enable_idempotence=True)
    same(offsets, list(range(500)))


def by_timestamp():
    name = new_topic("time")
    produce(name, [{"value": b"%d" % i, "timestamp": 1_000_000 + i * 1000} for i in range(20)])
    found = consumer().offsets_for_times([TopicPartition(name, 0, 1_005_500)], timeout=10)
    same(found[0].offset, 6)


def seek():
    name = new_topic("seek")
    produce(name, [{"value": b"%d" % i} for i in range(100)])
    same(read(name, 1, 42)[0].value(), b"42")
    same(consumer().get_watermark_offsets(TopicPartition(name, 0), timeout=10), (0, 100))


def large():
    name = new_topic("large")
    value = bytes(range(256)) * (LARGE // 256)
    produce(name, [{"value": value}])
    same(read(name, 1)[0].value(), value)


def describe_and_alter():
    name = new_topic("configs", 1, **{"retention.ms": "60000"})

    def retention():
        resource = ConfigResource(ConfigResource.Type.TOPIC, name)
        return wait(admin.describe_configs([resource]))[0]["retention.ms"].value

    same(retention(), "60000")
    entry = ConfigEntry("retention.ms", "70000", incremental_operation=AlterConfigOpType.SET)
    change = ConfigResource(ConfigResource.Type.TOPIC, name, incremental_configs=[entry])
    wait(admin.incremental_alter_configs([change]))
    same(retention(), "70000")


def more_partitions():
    name = new_topic("partitions")
    wait(admin.create_partitions([NewPartitions(name, 4)]))
    same(len(admin.list_topics(timeout=10).topics[name].partitions), 4)


def delete_records():
    name = new_topic("delete-records")
    produce(name, [{"value": b"%d" % i} for i in range(10)])
    wait(admin.delete_records([TopicPartition(name, 0, 4)]))
    same(consumer().get_watermark_offsets(TopicPartition(name, 0), timeout=10), (4, 10))


def thousand_partitions():
    name = new_topic("thousand", 1000)
    produce(name, [{"value": b"v", "partition": partition} for partition in range(1000)])
    same(sorted(admin.list_topics(timeout=10).topics[name].partitions), list(range(1000)))
    asked = {TopicPartition(name, partition): OffsetSpec.latest() for partition in range(1000)}
    same({found.offset for found in wait(admin.list_offsets(asked))}, {1})
    wait(admin.delete_topics([name]))


def delete_topic():
    name = new_topic("delete")
    wait(admin.delete_topics([name]))
    require(name not in admin.list_topics(timeout=10).topics, "it is still there")


class Member:
    """A member of a group."""

    def __init__(self, group, name, instance=None, cooperative=False, new_protocol=False):
        config = {
            "bootstrap.servers": BOOTSTRAP,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
        if new_protocol:
            config["group.protocol"] = "consumer"
        else:
            config["partition.assignment.strategy"] = "cooperative-sticky" if cooperative else "range,roundrobin"
        self.consumer = Consumer({**config, "group.instance.id": instance} if instance else config)
        self.consumer.subscribe([name])

    def poll(self):
        messages = self.consumer.consume(100, 0.2)
        for message in messages:
            require(message.error() is None, message.error())
        return [(message.partition(), message.offset()) for message in messages]

    def assigned(self):
        return {place.partition for place in self.consumer.assignment()}

    def commit(self):
        self.consumer.commit(asynchronous=False)

    def close(self):
        self.consumer.close()


def list_and_delete(group):
    listed = admin.list_consumer_groups().result(30).valid
    require(group in [found.group_id for found in listed], "it is not listed")
    described = wait(admin.describe_consumer_groups([group]))[0]
    same((described.state.name, len(described.members)), ("EMPTY", 0))
    offsets = wait(admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)]))[0]
    require(offsets.topic_partitions, "no offsets")
    wait(admin.delete_consumer_groups([group]))
    listed = admin.list_consumer_groups().result(30).valid
    require(group not in [found.group_id for found in listed], "it is still there")


class Sender:
    """Produces with idempotence."""

    def __init__(self, name):
        self.name = name
        self.producer = Producer({"bootstrap.servers": BOOTSTRAP, "enable.idempotence": True})

    def send(self, value, acked):
        self.producer.produce(self.name, value, on_delivery=lambda error, _: error or acked())
        self.producer.poll(0)

    def close(self):
        self.producer.flush(60)


at_work(Sender, Member)
check("create and list topics", create_and_list)
check("auto-create", auto_create)
for kind in CODECS:
    check(f"codec {kind}", codec(kind))
check("headers, duplicates too", headers)
for level in ["0", "1", "all"]:
    check(f"acks {level}", acks(level))
check("idempotence", idempotence)
check("offset by time", by_timestamp)
check("seek", seek)
check("large message", large)
check("topic settings", describe_and_alter)
check("more partitions", more_partitions)
check("delete records", delete_records)
check("delete topic", delete_topic)
check("1,000 partitions", thousand_partitions)
check_groups(new_topic, produce, Member, list_and_delete)
check_groups(new_topic, produce, Member, list_and_delete, new_protocol=True)


def write_full(name, codec, records):
    encoded = [
        {"key": key, "value": value, "headers": headers, "timestamp": timestamp}
        for key, value, headers, timestamp in records
    ]
    produce(name, encoded, compression_type=codec, linger_ms=20)


def read_full(name, count):
    return [
        (
            message.key().decode(),
            message.value().decode(),
            [(header, text.decode()) for header, text in message.headers()],
            message.timestamp()[1],
        )
        for message in read(name, count)
    ]


check_grpc(new_topic, write_full, read_full)
