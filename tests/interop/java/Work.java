import java.time.Duration;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.KafkaException;

/** A client at work for as long as its standard input is open, while others kill nodes. */
final class Work {
    private static volatile boolean ends;

    private Work() {}

    /** Does {@code produce TOPIC} or {@code consume GROUP TOPIC}. */
    static void run(String[] arguments) throws Exception {
        Thread waits = new Thread(() -> {
            try {
                System.in.readAllBytes();
            } catch (java.io.IOException error) {
                error.printStackTrace();
            }
            ends = true;
        });
        waits.setDaemon(true);
        waits.start();
        if (arguments[0].equals("produce")) {
            produce(arguments[1]);
        } else {
            consume(arguments[1], arguments[2]);
        }
    }

    private static void produce(String topic) throws InterruptedException {
        try (KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(Main.producer())) {
            for (int i = 0; !ends; i++) {
                String value = String.valueOf(i);
                producer.send(new ProducerRecord<>(topic, value.getBytes()), (done, error) -> {
                    if (error == null) {
                        System.out.println("acked " + value);
                    }
                });
                Thread.sleep(5);
            }
        }
    }

    private static void consume(String group, String topic) {
        Map<String, Object> config = Main.consumer();
        config.put("group.id", group);
        try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(config)) {
            consumer.subscribe(List.of(topic));
            while (!ends) {
                // What fails for now is tried again with the next records, as an application would.
                try {
                    ConsumerRecords<byte[], byte[]> records = consumer.poll(Duration.ofMillis(200));
                    for (ConsumerRecord<byte[], byte[]> record : records) {
                        System.out.println("read " + record.partition() + " " + record.offset());
                    }
                    if (!records.isEmpty()) {
                        consumer.commitSync();
                    }
                } catch (KafkaException error) {
                    System.err.println(error);
                }
            }
        }
    }
}
