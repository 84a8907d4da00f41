import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Future;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.NewPartitions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.admin.RecordsToDelete;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/** kafka-clients. */
public final class Main {
    private static final Admin ADMIN = Admin.create(Map.of("bootstrap.servers", Features.BOOTSTRAP));

    static Map<String, Object> consumer() {
        return new HashMap<>(Map.of(
                "bootstrap.servers", Features.BOOTSTRAP,
                "key.deserializer", ByteArrayDeserializer.class.getName(),
                "value.deserializer", ByteArrayDeserializer.class.getName(),
                "auto.offset.reset", "earliest",
                "enable.auto.commit", "false"));
    }

    static String newTopic(String name, int partitions, Map<String, String> settings) throws Exception {
        String topic = Features.topic(name);
        ADMIN.createTopics(List.of(new NewTopic(topic, partitions, (short) 1).configs(settings))).all().get();
        return topic;
    }

    static Map<String, Object> producer() {
        return new HashMap<>(Map.of(
                "bootstrap.servers", Features.BOOTSTRAP,
                "key.serializer", ByteArraySerializer.class.getName(),
                "value.serializer", ByteArraySerializer.class.getName()));
    }

    static List<RecordMetadata> produce(List<ProducerRecord<byte[], byte[]>> records, Map<String, Object> settings)
            throws Exception {
        Map<String, Object> config = producer();
        config.putAll(settings);
        List<Future<RecordMetadata>> sent = new ArrayList<>();
        List<RecordMetadata> done = new ArrayList<>();
        try (KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(config)) {
            for (ProducerRecord<byte[], byte[]> record : records) {
                sent.add(producer.send(record));
            }
            producer.flush();
            for (Future<RecordMetadata> future : sent) {
                done.add(future.get());
            }
        }
        return done;
    }

    static List<RecordMetadata> produce(String topic, int count, Map<String, Object> settings) throws Exception {
        List<ProducerRecord<byte[], byte[]>> records = new ArrayList<>();
        for (int i = 0; i < count; i++) {
            records.add(new ProducerRecord<>(topic, ("k" + i).getBytes(), value(i)));
        }
        return produce(records, settings);
    }

    static byte[] value(int i) {
        return ("value " + i + " ").repeat(20).getBytes();
    }

    static List<ConsumerRecord<byte[], byte[]>> read(String topic, int count, long offset) {
        List<ConsumerRecord<byte[], byte[]>> records = new ArrayList<>();
        TopicPartition place = new TopicPartition(topic, 0);
        try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(consumer())) {
            consumer.assign(List.of(place));
            consumer.seek(place, offset);
            for (long end = System.currentTimeMillis() + 15_000; records.size() < count && System.currentTimeMillis() < end; ) {
                consumer.poll(Duration.ofMillis(500)).forEach(records::add);
            }
        }
        return records;
    }

    /** Produces records and reads the same ones. */
    private static Features.Attempt roundTrip(String name, Map<String, Object> settings) {
        return () -> {
            String topic = newTopic(name, 1, Map.of());
            produce(topic, 200, settings);
            List<ConsumerRecord<byte[], byte[]>> found = read(topic, 200, 0);
            Features.same(found.size(), 200);
            for (int i = 0; i < 200; i++) {
                Features.same(found.get(i).value(), value(i));
            }
        };
    }

    private static String retention(ConfigResource resource) throws Exception {
        return ADMIN.describeConfigs(List.of(resource)).all().get().get(resource).get("retention.ms").value();
    }

    private static void settings() throws Exception {
        String topic = newTopic("settings", 1, Map.of("retention.ms", "60000"));
        ConfigResource resource = new ConfigResource(ConfigResource.Type.TOPIC, topic);
        Features.same(retention(resource), "60000");
        AlterConfigOp change = new AlterConfigOp(new ConfigEntry("retention.ms", "70000"), AlterConfigOp.OpType.SET);
        ADMIN.incrementalAlterConfigs(Map.of(resource, List.of(change))).all().get();
        Features.same(retention(resource), "70000");
    }

    private static void byTime() throws Exception {
        String topic = newTopic("time", 1, Map.of());
        List<ProducerRecord<byte[], byte[]>> records = new ArrayList<>();
        for (long i = 0; i < 20; i++) {
            records.add(new ProducerRecord<>(topic, 0, 1_000_000 + i * 1000, null, value((int) i)));
        }
        produce(records, Map.of());
        TopicPartition place = new TopicPartition(topic, 0);
        try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(consumer())) {
            var found = consumer.offsetsForTimes(Map.of(place, 1_005_500L)).get(place);
            Features.same(found.offset(), 6L);
            Features.require(consumer.offsetsForTimes(Map.of(place, 2_000_000_000L)).get(place) == null, "of the future");
        }
    }

    private static void seek() throws Exception {
        String topic = newTopic("seek", 1, Map.of());
        produce(topic, 100, Map.of());
        Features.same(read(topic, 1, 42).get(0).offset(), 42L);
        TopicPartition place = new TopicPartition(topic, 0);
        try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(consumer())) {
            consumer.assign(List.of(place));
            consumer.seekToEnd(List.of(place));
            Features.same(consumer.position(place), 100L);
        }
    }

    private static void headers() throws Exception {
        String topic = newTopic("headers", 1, Map.of());
        ProducerRecord<byte[], byte[]> record = new ProducerRecord<>(topic, new byte[] {1});
        for (String[] header : new String[][] {{"a", "1"}, {"b", ""}, {"a", "2"}}) {
            record.headers().add(header[0], header[1].getBytes());
        }
        produce(List.of(record), Map.of());
        StringBuilder found = new StringBuilder();
        read(topic, 1, 0).get(0).headers().forEach(it -> found.append(it.key()).append(new String(it.value())));
        Features.same(found.toString(), "a1ba2");
    }

    private static void idempotence() throws Exception {
        String topic = newTopic("idempotence", 1, Map.of());
        long next = 0;
        for (RecordMetadata done : produce(topic, 500, Map.of("enable.idempotence", "true", "acks", "all"))) {
            Features.same(done.offset(), next++);
        }
    }

    private static void deleteRecords() throws Exception {
        String topic = newTopic("delete-records", 1, Map.of());
        produce(topic, 10, Map.of());
        TopicPartition place = new TopicPartition(topic, 0);
        ADMIN.deleteRecords(Map.of(place, RecordsToDelete.beforeOffset(4))).all().get();
        try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(consumer())) {
            Features.same(consumer.beginningOffsets(List.of(place)).get(place), 4L);
        }
    }

    private static void thousandPartitions() throws Exception {
        String topic = newTopic("thousand", 1000, Map.of());
        List<ProducerRecord<byte[], byte[]>> records = new ArrayList<>();
        Map<TopicPartition, OffsetSpec> asked = new HashMap<>();
        for (int partition = 0; partition < 1000; partition++) {
            records.add(new ProducerRecord<>(topic, partition, null, value(partition)));
            asked.put(new TopicPartition(topic, partition), OffsetSpec.latest());
        }
        produce(records, Map.of());
        var described = ADMIN.describeTopics(List.of(topic)).allTopicNames().get().get(topic);
        Features.same(described.partitions().size(), 1000);
        for (var end : ADMIN.listOffsets(asked).all().get().values()) {
            Features.same(end.offset(), 1L);
        }
        ADMIN.deleteTopics(List.of(topic)).all().get();
    }

    private static void large() throws Exception {
        String topic = newTopic("large", 1, Map.of());
        byte[] value = new byte[900_000];
        produce(List.of(new ProducerRecord<>(topic, value)), Map.of());
        Features.same(read(topic, 1, 0).get(0).value(), value);
    }

    public static void main(String[] arguments) throws Exception {
        if (arguments.length > 0) {
            Work.run(arguments);
            ADMIN.close();
            return;
        }
        Features.check("create and list topics", () -> {
            String topic = newTopic("list", 3, Map.of());
            Features.require(ADMIN.listTopics().names().get().contains(topic), "it is not listed");
            var described = ADMIN.describeTopics(List.of(topic)).allTopicNames().get().get(topic);
            Features.same(described.partitions().size(), 3);
        });
        Features.check("auto-create", () -> {
            String topic = Features.topic("auto");
            produce(topic, 1, Map.of());
            Features.same(read(topic, 1, 0).size(), 1);
        });
        for (String codec : List.of("none", "gzip", "snappy", "lz4", "zstd")) {
            Features.check("codec " + codec, roundTrip(codec, Map.of("compression.type", codec, "linger.ms", 20)));
        }
        Features.check("headers, duplicates too", Main::headers);
        for (String acks : List.of("0", "1", "all")) {
            Features.check("acks " + acks, roundTrip("acks", Map.of("acks", acks, "enable.idempotence", "false")));
        }
        Features.check("idempotence", Main::idempotence);
        Features.check("offset by time", Main::byTime);
        Features.check("seek", Main::seek);
        Features.check("large message", Main::large);
        Features.check("topic settings", Main::settings);
        Features.check("more partitions", () -> {
            String topic = newTopic("partitions", 1, Map.of());
            ADMIN.createPartitions(Map.of(topic, NewPartitions.increaseTo(4))).all().get();
            var described = ADMIN.describeTopics(List.of(topic)).allTopicNames().get().get(topic);
            Features.same(described.partitions().size(), 4);
        });
        Features.check("delete records", Main::deleteRecords);
        Features.check("1,000 partitions", Main::thousandPartitions);
        Features.check("delete topic", () -> {
            String topic = newTopic("delete", 1, Map.of());
            ADMIN.deleteTopics(List.of(topic)).all().get();
            Features.require(!ADMIN.listTopics().names().get().contains(topic), "it is still there");
        });
        Groups groups = new Groups(ADMIN, Map.of());
        Features.check("group shares partitions", groups::shares);
        Features.check("group commits and resumes", groups::resumes);
        Features.check("group, cooperative", groups::takesOverOneByOne);
        Features.check("group, static member", groups::staticMember);
        Features.check("group, topics by pattern", groups::byPattern);
        Features.check("group seen by admin", groups::seenByAdmin);
        Features.check("group with gRPC", groups::withGrpc);
        Features.check("written here, read over gRPC", Both::writtenHere);
        Features.check("written over gRPC, read here", Both::writtenOverGrpc);
        Groups newProtocol = new Groups(ADMIN, Map.of("group.protocol", "consumer"));
        Features.check("new group protocol: shares partitions", newProtocol::shares);
        Features.check("new group protocol: commits and resumes", newProtocol::resumes);
        Features.check("new group protocol: static member", newProtocol::staticMember);
        Features.check("new group protocol: regex", newProtocol::byPattern);
        ADMIN.close();
    }
}
