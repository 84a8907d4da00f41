import static java.util.stream.Collectors.toSet;

import java.time.Duration;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.regex.Pattern;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.CooperativeStickyAssignor;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.RangeAssignor;
import org.apache.kafka.clients.consumer.SubscriptionPattern;
import org.apache.kafka.common.TopicPartition;

/** What members of a group see. */
final class Groups {
    private static final int PARTITIONS = 4;

    /** A consumer at work in a thread of its own. */
    private static final class Member extends Thread {
        final List<String> records = Collections.synchronizedList(new ArrayList<>());
        volatile Set<Integer> assigned = Set.of();
        volatile int changes;
        volatile boolean emptied;
        volatile boolean commits;
        volatile boolean ends;
        volatile Throwable failure;
        private final String group;
        private final String topic;
        private final Map<String, Object> options;

        Member(String group, String topic, Map<String, Object> options) {
            this.group = group;
            this.topic = topic;
            this.options = options;
            setDaemon(true);
            start();
        }

        @Override
        public void run() {
            Map<String, Object> config = Main.consumer();
            config.put("group.id", group);
            if (!options.containsKey("group.protocol")) {
                config.put("partition.assignment.strategy", RangeAssignor.class.getName());
            }
            config.putAll(options);
            try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(config)) {
                if (!topic.startsWith("^")) {
                    consumer.subscribe(List.of(topic));
                } else if (options.containsKey("group.protocol")) {
                    // Matched by the broker.
                    consumer.subscribe(new SubscriptionPattern(topic));
                } else {
                    consumer.subscribe(Pattern.compile(topic));
                }
                while (!ends) {
                    for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(200))) {
                        records.add(record.partition() + " " + record.offset());
                    }
                    Set<Integer> now = consumer.assignment().stream().map(TopicPartition::partition).collect(toSet());
                    if (!now.equals(assigned)) {
                        changes++;
                        emptied |= now.isEmpty();
                        assigned = now;
                    }
                    if (commits) {
                        consumer.commitSync();
                        commits = false;
                    }
                }
            } catch (Throwable error) {
                failure = error;
            }
        }

        void check() {
            if (failure != null) {
                throw new IllegalStateException(failure);
            }
        }

        void reads(int count) throws InterruptedException {
            Features.eventually(() -> {
                check();
                return records.size() >= count;
            }, "not all was read");
        }

        void commit() throws InterruptedException {
            commits = true;
            Features.eventually(() -> {
                check();
                return !commits;
            }, "the offsets were not stored");
        }

        void end() throws InterruptedException {
            ends = true;
            join(30_000);
            check();
        }
    }

    private static void shared(Member... members) throws InterruptedException {
        Features.eventually(() -> {
            Set<Integer> all = new TreeSet<>();
            boolean even = true;
            for (Member member : members) {
                member.check();
                even &= member.assigned.size() == PARTITIONS / members.length;
                all.addAll(member.assigned);
            }
            return even && all.size() == PARTITIONS;
        }, "the partitions are not shared");
    }

    static String quipu(String lines, String... arguments) throws Exception {
        List<String> command = new ArrayList<>(List.of(System.getenv("QUIPU")));
        command.addAll(List.of(arguments));
        command.addAll(List.of("--broker", System.getenv("GRPC")));
        Process process = new ProcessBuilder(command).redirectError(ProcessBuilder.Redirect.INHERIT).start();
        try (var input = process.getOutputStream()) {
            input.write(lines.getBytes());
        }
        String output = new String(process.getInputStream().readAllBytes());
        Features.same(process.waitFor(), 0);
        return output;
    }

    private final Admin admin;
    private final Map<String, Object> settings;

    /** Groups whose members have these settings. */
    Groups(Admin admin, Map<String, Object> settings) {
        this.admin = admin;
        this.settings = settings;
    }

    private Member member(String group, String topic, Map<String, Object> options) {
        Map<String, Object> all = new HashMap<>(settings);
        all.putAll(options);
        return new Member(group, topic, all);
    }

    private Member member(String group, String topic) {
        return member(group, topic, Map.of());
    }

    private static String newTopic() throws Exception {
        return Main.newTopic("group", PARTITIONS, Map.of());
    }

    void shares() throws Exception {
        String group = Features.topic("g");
        String topic = newTopic();
        Member first = member(group, topic);
        shared(first);
        Member second = member(group, topic);
        shared(first, second);
        second.end();
        shared(first);
        first.end();
    }

    void resumes() throws Exception {
        String group = Features.topic("g");
        String topic = newTopic();
        Main.produce(topic, 20, Map.of());
        Member first = member(group, topic);
        first.reads(20);
        first.commit();
        first.end();
        Main.produce(topic, 5, Map.of());
        Member second = member(group, topic);
        second.reads(5);
        Thread.sleep(1000);
        second.end();
        Features.same(second.records.size(), 5);
        Set<String> twice = new HashSet<>(first.records);
        twice.retainAll(second.records);
        Features.same(twice, Set.of());
    }

    void takesOverOneByOne() throws Exception {
        String group = Features.topic("g");
        String topic = newTopic();
        Map<String, Object> cooperative =
                Map.of("partition.assignment.strategy", CooperativeStickyAssignor.class.getName());
        Member first = member(group, topic, cooperative);
        shared(first);
        Member second = member(group, topic, cooperative);
        shared(first, second);
        Features.require(!first.emptied, "it let go of all on the way");
        second.end();
        shared(first);
        first.end();
    }

    void byPattern() throws Exception {
        String stem = Features.topic("stem");
        Main.produce(Main.newTopic(stem + "-a", 1, Map.of()), 5, Map.of());
        Main.produce(Main.newTopic(stem + "-b", 1, Map.of()), 7, Map.of());
        Main.produce(Main.newTopic("other", 1, Map.of()), 3, Map.of());
        Member member = member(Features.topic("g"), "^" + stem + ".*");
        member.reads(12);
        Thread.sleep(1000);
        member.end();
        Features.same(member.records.size(), 12);
    }

    void staticMember() throws Exception {
        String group = Features.topic("g");
        String topic = newTopic();
        Member first = member(group, topic, Map.of("group.instance.id", "one"));
        Member second = member(group, topic, Map.of("group.instance.id", "two"));
        shared(first, second);
        int changes = second.changes;
        first.end();
        Member again = member(group, topic, Map.of("group.instance.id", "one"));
        Features.eventually(() -> again.assigned.equals(first.assigned), "it did not get what it had");
        Thread.sleep(1000);
        Features.same(second.changes, changes);
        again.end();
        second.end();
    }

    void seenByAdmin() throws Exception {
        String group = Features.topic("g");
        String topic = newTopic();
        Main.produce(topic, 1, Map.of());
        Member first = member(group, topic);
        first.reads(1);
        first.commit();
        first.end();
        Features.require(isListed(group), "it is not listed");
        var described = admin.describeConsumerGroups(List.of(group)).all().get().get(group);
        Features.same(described.members().size(), 0);
        Features.same(described.groupState().toString(), "Empty");
        Features.require(
                !admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get().isEmpty(), "no offsets");
        admin.deleteConsumerGroups(List.of(group)).all().get();
        Features.require(!isListed(group), "it is still there");
    }

    private boolean isListed(String group) throws Exception {
        return admin.listGroups().all().get().stream().anyMatch(found -> found.groupId().equals(group));
    }

    void withGrpc() throws Exception {
        String group = Features.topic("g");
        String topic = newTopic();
        StringBuilder lines = new StringBuilder();
        for (int i = 0; i < 40; i++) {
            lines.append("line ").append(i).append('\n');
        }
        quipu(lines.toString(), "produce", topic);
        Member first = member(group, topic);
        first.reads(40);
        first.commit();
        String shown = quipu("", "group", "describe", group);
        Features.require(shown.contains("members 1, records behind 0"), shown);
        first.end();
        quipu("", "group", "reset-offsets", group, "--topic", topic, "--to", "earliest");
        Member again = member(group, topic);
        again.reads(40);
        again.end();
    }
}
