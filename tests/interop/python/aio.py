"""aiokafka."""

import asyncio
import threading

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from at_work import at_work
from both import check_grpc
from features import BOOTSTRAP, CODECS, LARGE, check, require, same, topic
from groups import check_groups


async def with_admin(use):
    admin = AIOKafkaAdminClient(bootstrap_servers=BOOTSTRAP)
    await admin.start()
    try:
        return await use(admin)
    finally:
        await admin.close()


async def new_topic(name, partitions=1, **settings):
    name = topic(name)
    new = NewTopic(name, partitions, 1, topic_configs=settings)
    await with_admin(lambda admin: admin.create_topics([new]))
    return name


async def produce(name, records, **settings):
    producer = AIOKafkaProducer(bootstrap_servers=BOOTSTRAP, **settings)
    await producer.start()
    try:
        sent = [await producer.send(name, **record) for record in records]
        return [await future for future in sent]
    finally:
        await producer.stop()


async def with_consumer(use):
    consumer = AIOKafkaConsumer(bootstrap_servers=BOOTSTRAP, enable_auto_commit=False)
    await consumer.start()
    try:
        return await use(consumer)
    finally:
        await consumer.stop()


async def read(name, count, offset=0):
    async def use(consumer):
        place = TopicPartition(name, 0)
        consumer.assign([place])
        consumer.seek(place, offset)
        return [await asyncio.wait_for(consumer.getone(), 10) for _ in range(count)]

    return await with_consumer(use)


async def create_and_list():
    name = await new_topic("list", 3)
    require(name in await with_admin(lambda admin: admin.list_topics()), "the topic is not listed")


async def auto_create():
    name = topic("auto")
    await produce(name, [{"value": b"a"}])
    same(len(await read(name, 1)), 1)


def codec(compression):
    async def run():
        name = await new_topic(compression)
        records = [{"key": b"k%d" % i, "value": b"value %d " % i * 20} for i in range(200)]
        kind = None if compression == "none" else compression
        await produce(name, records, compression_type=kind, linger_ms=20)
        same([(r.key, r.value) for r in await read(name, 200)], [(r["key"], r["value"]) for r in records])

    return run


async def headers():
    name = await new_topic("headers")
    wanted = [("a", b"1"), ("b", b""), ("a", b"2")]
    await produce(name, [{"value": b"v", "headers": wanted}])
    same(list((await read(name, 1))[0].headers), wanted)


def acks(level):
    async def run():
        name = await new_topic("acks")
        await produce(name, [{"value": b"%d" % i} for i in range(50)], acks=level)
        same(len(await read(name, 50)), 50)

    return run


async def idempotence():
    name = await new_topic("idempotence")
    done = await produce(name, [{"value": b"%d" % i} for i in range(500)], enable_idempotence=True)
    same([record.offset for record in done], list(range(500)))


async def by_timestamp():
    name = await new_topic("time")
    await produce(name, [{"value": b"%d" % i, "timestamp_ms": 1_000_000 + i * 1000} for i in range(20)])
    place = TopicPartition(name, 0)
    found = await with_consumer(lambda consumer: consumer.offsets_for_times({place: 1_005_500}))
    same((found[place].offset, found[place].timestamp), (6, 1_006_000))


async def seek():
    name = await new_topic("seek")
    await produce(name, [{"value": b"%d" % i} for i in range(100)])
    found = (await read(name, 1, 42))[0]
    same((found.offset, found.value), (42, b"42"))
    place = TopicPartition(name, 0)
    same((await with_consumer(lambda consumer: consumer.end_offsets([place])))[place], 100)


async def large():
    name = await new_topic("large")
    value = bytes(range(256)) * (LARGE // 256)
    await produce(name, [{"value": value}])
    same((await read(name, 1))[0].value, value)


async def describe_and_alter():
    name = await new_topic("configs", 1, **{"retention.ms": "60000"})

    async def described():
        resource = ConfigResource(ConfigResourceType.TOPIC, name)
        return str(await with_admin(lambda admin: admin.describe_configs([resource])))

    require("60000" in await described(), "it was not set")
    change = ConfigResource(ConfigResourceType.TOPIC, name, configs={"retention.ms": "70000"})
    await with_admin(lambda admin: admin.alter_configs([change]))
    require("70000" in await described(), "it was not altered")


async def more_partitions():
    name = await new_topic("partitions")
    await with_admin(lambda admin: admin.create_partitions({name: NewPartitions(4)}))
    found = await with_admin(lambda admin: admin.describe_topics([name]))
    same(len(found[0]["partitions"]), 4)


async def thousand_partitions():
    name = await new_topic("thousand", 1000)
    await produce(name, [{"value": b"v", "partition": partition} for partition in range(1000)])
    found = await with_admin(lambda admin: admin.describe_topics([name]))
    same(len(found[0]["partitions"]), 1000)
    places = [TopicPartition(name, partition) for partition in range(1000)]
    ends = await with_consumer(lambda consumer: consumer.end_offsets(places))
    same(set(ends.values()), {1})
    await with_admin(lambda admin: admin.delete_topics([name]))


async def delete_topic():
    name = await new_topic("delete")
    await with_admin(lambda admin: admin.delete_topics([name]))
    require(name not in await with_admin(lambda admin: admin.list_topics()), "it is still there")


def run(feature, function):
    check(feature, lambda: asyncio.run(function()))


class Member:
    """A member of a group, in the event loop of its thread."""

    def __init__(self, group, name, instance=None):
        self.loop = asyncio.new_event_loop()

        async def start():
            consumer = AIOKafkaConsumer(
                bootstrap_servers=BOOTSTRAP,
                group_id=group,
                group_instance_id=instance,
                auto_offset_reset="earliest",
                enable_auto_commit=False,
            )
            by_pattern = name.startswith("^")
            consumer.subscribe(**({"pattern": name} if by_pattern else {"topics": [name]}))
            await consumer.start()
            return consumer

        self.consumer = self.loop.run_until_complete(start())

    def poll(self):
        found = self.loop.run_until_complete(self.consumer.getmany(timeout_ms=200))
        return [(record.partition, record.offset) for records in found.values() for record in records]

    def assigned(self):
        return {place.partition for place in self.consumer.assignment()}

    def commit(self):
        self.loop.run_until_complete(self.consumer.commit())

    def close(self):
        self.loop.run_until_complete(self.consumer.stop())


def list_and_delete(group):
    async def use(admin):
        require(group in str(await admin.list_consumer_groups()), "it is not listed")
        require("Empty" in str(await admin.describe_consumer_groups([group])), "it is not described as empty")
        require(await admin.list_consumer_group_offsets(group), "no offsets")

    asyncio.run(with_admin(use))


class Sender:
    """Produces with idempotence, in an event loop of its own."""

    def __init__(self, name):
        self.name, self.loop = name, asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

        async def start():
            producer = AIOKafkaProducer(bootstrap_servers=BOOTSTRAP, enable_idempotence=True)
            await producer.start()
            return producer

        self.producer = asyncio.run_coroutine_threadsafe(start(), self.loop).result()

    def send(self, value, acked):
        sent = asyncio.run_coroutine_threadsafe(self.producer.send_and_wait(self.name, value), self.loop)
        sent.add_done_callback(lambda done: done.exception() or acked())

    def close(self):
        asyncio.run_coroutine_threadsafe(self.producer.stop(), self.loop).result()


at_work(Sender, Member)
run("create and list topics", create_and_list)
run("auto-create", auto_create)
for kind in CODECS:
    run(f"codec {kind}", codec(kind))
run("headers, duplicates too", headers)
for name, level in [("0", 0), ("1", 1), ("all", "all")]:
    run(f"acks {name}", acks(level))
run("idempotence", idempotence)
run("offset by time", by_timestamp)
run("seek", seek)
run("large message", large)
run("topic settings", describe_and_alter)
run("more partitions", more_partitions)
check("delete records", lambda: "the client cannot")
run("delete topic", delete_topic)
run("1,000 partitions", thousand_partitions)
check_groups(
    lambda name, count: asyncio.run(new_topic(name, count)),
    lambda name, records: asyncio.run(produce(name, records)),
    Member,
    list_and_delete,
    cooperative=False,
)


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
    asyncio.run(produce(name, encoded, compression_type=None if codec == "none" else codec, linger_ms=20))


def read_full(name, count):
    return [
        (r.key.decode(), r.value.decode(), [(header, text.decode()) for header, text in r.headers], r.timestamp)
        for r in asyncio.run(read(name, count))
    ]


check_grpc(lambda name: asyncio.run(new_topic(name)), write_full, read_full)
