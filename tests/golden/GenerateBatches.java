import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import org.apache.kafka.common.compress.Compression;
import org.apache.kafka.common.record.CompressionType;
import org.apache.kafka.common.record.MemoryRecords;
import org.apache.kafka.common.record.MutableRecordBatch;
import org.apache.kafka.common.record.Record;
import org.apache.kafka.common.record.RecordBatch;
import org.apache.kafka.common.record.TimestampType;

/**
 * Reads IN/*.batch with Kafka's own Java client, fails unless all hold the same records, and writes those records as
 * OUT/*.batch: java -cp 'LIB/*' GenerateBatches.java IN OUT, where LIB holds kafka-clients (3.9) and its dependencies.
 */
public class GenerateBatches {
    public static void main(String[] arguments) throws Exception {
        MemoryRecords expected = read(arguments[0], "none");
        for (String name : new String[] {"none", "gzip", "snappy", "lz4", "zstd"}) {
            MutableRecordBatch batch = read(arguments[0], name).batches().iterator().next();
            batch.ensureValid();
            ByteBuffer again = write(batch, CompressionType.NONE);
            if (!again.equals(write(expected.batches().iterator().next(), CompressionType.NONE))) {
                throw new AssertionError(name + ": records differ");
            }
            ByteBuffer written = write(batch, CompressionType.forName(name));
            byte[] bytes = new byte[written.remaining()];
            written.get(bytes);
            Files.write(Path.of(arguments[1], name + ".batch"), bytes);
            System.out.println(name + ": " + batch.countOrNull() + " records as expected");
        }
    }

    static MemoryRecords read(String directory, String name) throws Exception {
        byte[] bytes = Files.readAllBytes(Path.of(directory, name + ".batch"));
        return MemoryRecords.readableRecords(ByteBuffer.wrap(bytes));
    }

    static ByteBuffer write(MutableRecordBatch batch, CompressionType codec) {
        int room = 1 << 20;
        var builder = MemoryRecords.builder(
                ByteBuffer.allocate(room), RecordBatch.MAGIC_VALUE_V2, Compression.of(codec).build(),
                TimestampType.CREATE_TIME, 0L, RecordBatch.NO_TIMESTAMP, batch.producerId(), batch.producerEpoch(),
                batch.baseSequence(), false, RecordBatch.NO_PARTITION_LEADER_EPOCH);
        for (Record record : batch) {
            builder.append(record.timestamp(), record.key(), record.value(), record.headers());
        }
        return builder.build().buffer();
    }
}
