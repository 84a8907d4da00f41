import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.header.Header;

/** Records are the same ones over gRPC: with their keys, headers and times, whatever compressed them. */
final class Both {
    private static final int COUNT = 50;
    private static final List<String> CODECS = List.of("none", "gzip", "snappy", "lz4", "zstd");
    private static final String[][] HEADERS = {{"a", "1"}, {"b", ""}, {"a", "2"}};

    private Both() {}

    private static String text(byte[] bytes) {
        return new String(bytes, StandardCharsets.UTF_8);
    }

    /** A record as {@code quipu consume --format json} prints it. */
    private static String line(String topic, long offset, long time, byte[] key, byte[] value, Iterable<Header> headers) {
        List<String> pairs = new ArrayList<>();
        for (Header header : headers) {
            pairs.add("{\"key\":\"" + header.key() + "\",\"value\":\"" + text(header.value()) + "\"}");
        }
        return "{\"topic\":\"" + topic + "\",\"partition\":0,\"offset\":" + offset + ",\"timestamp\":" + time
                + ",\"key\":\"" + text(key) + "\",\"value\":\"" + text(value)
                + "\",\"headers\":[" + String.join(",", pairs) + "]}\n";
    }

    private static String overGrpc(String topic) throws Exception {
        return Groups.quipu("", "consume", topic, "--format", "json");
    }

    static void writtenHere() throws Exception {
        for (String codec : CODECS) {
            String topic = Main.newTopic("to-grpc", 1, Map.of());
            List<ProducerRecord<byte[], byte[]>> records = new ArrayList<>();
            StringBuilder wanted = new StringBuilder();
            for (int i = 0; i < COUNT; i++) {
                long time = 1_700_000_000_000L + i;
                var record = new ProducerRecord<>(topic, 0, time, ("k" + i).getBytes(), Main.value(i));
                for (String[] header : HEADERS) {
                    record.headers().add(header[0], header[1].getBytes());
                }
                records.add(record);
                wanted.append(line(topic, i, time, record.key(), record.value(), record.headers()));
            }
            Main.produce(records, Map.of("compression.type", codec, "linger.ms", 20));
            Features.same(overGrpc(topic), wanted.toString());
        }
    }

    static void writtenOverGrpc() throws Exception {
        for (String codec : CODECS) {
            String topic = Main.newTopic("from-grpc", 1, Map.of());
            List<String> command =
                    new ArrayList<>(List.of("produce", topic, "--key-separator", ":", "--compression", codec));
            for (String[] header : HEADERS) {
                command.addAll(List.of("--header", header[0] + "=" + header[1]));
            }
            StringBuilder lines = new StringBuilder();
            for (int i = 0; i < COUNT; i++) {
                lines.append("k").append(i).append(':').append(text(Main.value(i))).append('\n');
            }
            Groups.quipu(lines.toString(), command.toArray(String[]::new));
            StringBuilder found = new StringBuilder();
            int next = 0;
            for (ConsumerRecord<byte[], byte[]> record : Main.read(topic, COUNT, 0)) {
                Features.same(text(record.key()), "k" + next);
                Features.same(record.value(), Main.value(next++));
                Features.same(record.headers().toArray().length, HEADERS.length);
                found.append(line(
                        topic, record.offset(), record.timestamp(), record.key(), record.value(), record.headers()));
            }
            Features.same(found.toString(), overGrpc(topic));
        }
    }
}
