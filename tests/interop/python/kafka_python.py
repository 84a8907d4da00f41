"""kafka-python."""

from at_work import at_work
from both import check_grpc
from features import BOOTSTRAP, CODECS, LARGE, check, require, same, topic
from groups import check_groups
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient, NewPartitions, NewTopic
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.coordinator.assignors.range import RangePartitionAssignor

admin = KafkaAdminClient(bootstrap_servers=BOOTSTRAP)


def new_topic(name, partitions=1, **settings):
    name = topic(name)
    admin.create_topics([NewTopic(name, partitions, 1, topic_configs=settings)])
    return name


def produce(name, records, **settings):
    producer = KafkaProducer(bootstrap_servers=BOOTSTRAP, **settings)
    sent = [producer.send(name, **record) for record in records]
    producer.flush(30)
    done = [future.get(30) for future in sent]
    producer.close()
    return done


def read(name, count, offset=0, partition=0):
    consumer = KafkaConsumer(bootstrap_servers=BOOTSTRAP, consumer_timeout_ms=10_000, enable_auto_commit=False)
    place = TopicPartition(name, partition)
    consumer.assign([place])
    consumer.seek(place, offset)
    records = []
    for record in consumer:
        records.append(record)
        if len(records) == count:
            break
    consumer.close()
    return records


def create_and_list():
    name = new_topic("list", 3)
    require(name in admin.list_topics(), "the topic is not listed")
    consumer = KafkaConsumer(bootstrap_servers=BOOTSTRAP)
    same(consumer.partitions_for_topic(name), {0, 1, 2})


def auto_create():
    name = topic("auto")
    produce(name, [{"value": b"a"}])
    same(len(read(name, 1)), 1)


def codec(compression):
    def run():
        name = new_topic(compression)
        records = [{"key": b"k%d" % i, "value": b"value %d " % i * 20} for i in range(200)]
        kind = None if compression == "none" else compression
        produce(name, records, compression_type=kind, linger_ms=20)
        same([(r.key, r.value) for r in read(name, 200)], [(r["key"], r["value"]) for r in records])

    return run


def headers():
    name = new_topic("headers")
    wanted = [("a", b"1"), ("b", b""), ("a", b"2")]
    produce(name, [{"value": b"v", "headers": wanted}])
    same(read(name, 1)[0].headers, wanted)


def acks(level):
    def run():
        name = new_topic("acks")
        produce(name, [{"value": b"%d" % i} for i in range(50)], acks=level, enable_idempotence=False)
        same(len(read(name, 50)), 50)

    return run


def idempotence():
    name = new_topic("idempotence")
    done = produce(name, [{"value": b"%d" % i} for i in range(500)], enable_idempotence=True, acks="all")
    same([record.offset for record in done], list(range(500)))


def by_timestamp():
    name = new_topic("time")
    produce(name, [{"value": b"%d" % i, "timestamp_ms": 1_000_000 + i * 1000} for i in range(20)])
    consumer = KafkaConsumer(bootstrap_servers=BOOTSTRAP)
    place = TopicPartition(name, 0)
    found = consumer.offsets_for_times({place: 1_005_500})[place]
    same((found.offset, found.timestamp), (6, 1_006_000))
    require(consumer.offsets_for_times({place: 2_000_000_000})[place] is None, "a record of the future")


def seek():
    name = new_topic("seek")
    produce(name, [{"value": b"%d" % i} for i in range(100)])
    same(read(name, 1, 42)[0].value, b"42")
    consumer = KafkaConsumer(bootstrap_servers=BOOTSTRAP, consumer_timeout_ms=5000, enable_auto_commit=False)
    place = TopicPartition(name, 0)
    consumer.assign([place])
    consumer.seek_to_end(place)
    same(consumer.position(place), 100)
    consumer.seek_to_beginning(place)
    same(next(consumer).offset, 0)


def large():
    name = new_topic("large")
    value = bytes(range(256)) * (LARGE // 256)
    produce(name, [{"value": value}])
    same(read(name, 1)[0].value, value)


def describe_and_alter():
    name = new_topic("configs", 1, **{"retention.ms": "60000"})
    resource = ConfigResource(ConfigResourceType.TOPIC, name)
    text = str(admin.describe_configs([resource]))
    require("60000" in text, text[:200])
    altered = ConfigResource(ConfigResourceType.TOPIC, name, configs={"retention.ms": "70000"})
    admin.alter_configs([altered])
    require("70000" in str(admin.describe_configs([resource])), "it was not altered")


def more_partitions():
    name = new_topic("partitions")
    admin.create_partitions({name: NewPartitions(4)})
    same(len(KafkaConsumer(bootstrap_servers=BOOTSTRAP).partitions_for_topic(name)), 4)


def delete_records():
    name = new_topic("delete-records")
    produce(name, [{"value": b"%d" % i} for i in range(10)])
    place = TopicPartition(name, 0)
    admin.delete_records({place: 4})
    consumer = KafkaConsumer(bootstrap_servers=BOOTSTRAP)
    same(consumer.beginning_offsets([place])[place], 4)


def thousand_partitions():
    name = new_topic("thousand", 1000)
    produce(name, [{"value": b"v", "partition": partition} for partition in range(1000)])
    consumer = KafkaConsumer(bootstrap_servers=BOOTSTRAP)
    same(consumer.partitions_for_topic(name), set(range(1000)))
    ends = consumer.end_offsets([TopicPartition(name, partition) for partition in range(1000)])
    same(set(ends.values()), {1})
    admin.delete_topics([name])


def delete_topic():
    name = new_topic("delete")
    admin.delete_topics([name])
    require(name not in admin.list_topics(), "it is still there")


class Member:
    """A member of a group."""

    def __init__(self, group, name, instance=None, cooperative=False):
        self.consumer = KafkaConsumer(
            bootstrap_servers=BOOTSTRAP,
            group_id=group,
            group_instance_id=instance,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            partition_assignment_strategy=[CooperativeStickyAssignor if cooperative else RangePartitionAssignor],
        )
        by_pattern = name.startswith("^")
        self.consumer.subscribe(**({"pattern": name} if by_pattern else {"topics": [name]}))

    def poll(self):
        found = self.consumer.poll(timeout_ms=200)
        return [(record.partition, record.offset) for records in found.values() for record in records]

    def assigned(self):
        return {place.partition for place in self.consumer.assignment()}

    def commit(self):
        self.consumer.commit()

    def close(self):
        self.consumer.close()


def list_and_delete(group):
    require(group in str(admin.list_groups()), "it is not listed")
    require("Empty" in str(admin.describe_groups([group])), "it is not described as empty")
    offsets = admin.list_group_offsets({group: None})[group]
    require(offsets, "no offsets")
    admin.delete_groups([group])
    require(group not in str(admin.list_groups()), "it is still there")


class Sender:
    """Produces with idempotence."""

    def __init__(self, name):
        self.name = name
        self.producer = KafkaProducer(bootstrap_servers=BOOTSTRAP, enable_idempotence=True, acks="all")

    def send(self, value, acked):
        self.producer.send(self.name, value).add_callback(lambda _: acked())

    def close(self):
        self.producer.close()


at_work(Sender, Member)
check("create and list topics", create_and_list)
check("auto-create", auto_create)
for kind in CODECS:
    check(f"codec {kind}", codec(kind))
check("headers, duplicates too", headers)
for name, level in [("0", 0), ("1", 1), ("all", "all")]:
    check(f"acks {name}", acks(level))
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


def write_full(name, codec, records):
    encoded = [
        {
            "key": key.encode(),
            "value": value.encode(),
            "headers": [(header, text.encode()) for header, text in headers],
            "timestamp_ms": timestamp,
        }
        for key, value, headers, timestamp in records
    ]
    produce(name, encoded, compression_type=None if codec == "none" else codec, linger_ms=20)


def read_full(name, count):
    return [
        (r.key.decode(), r.value.decode(), [(header, text.decode()) for header, text in r.headers], r.timestamp)
        for r in read(name, count)
    ]


check_grpc(new_topic, write_full, read_full)
