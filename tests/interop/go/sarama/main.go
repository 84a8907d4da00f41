// sarama.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/IBM/sarama"

	"quipu/interop/scenarios"
)

var brokers = strings.Split(os.Getenv("BOOTSTRAP"), ",")

func config() *sarama.Config {
	made := sarama.NewConfig()
	made.Version = sarama.MaxVersion
	made.Producer.Return.Successes = true
	made.Producer.RequiredAcks = sarama.WaitForAll
	made.Consumer.Offsets.Initial = sarama.OffsetOldest
	made.Consumer.Offsets.AutoCommit.Enable = false
	return made
}

func withIdempotence(c *sarama.Config) {
	c.Producer.Idempotent = true
	c.Net.MaxOpenRequests = 1
}

func withAdmin(use func(sarama.ClusterAdmin) error) error {
	admin, err := sarama.NewClusterAdmin(brokers, config())
	if err != nil {
		return err
	}
	return errors.Join(use(admin), admin.Close())
}

func newTopic(name string, partitions int32, settings map[string]*string) (string, error) {
	name = scenarios.Topic(name)
	return name, withAdmin(func(admin sarama.ClusterAdmin) error {
		detail := &sarama.TopicDetail{NumPartitions: partitions, ReplicationFactor: 1, ConfigEntries: settings}
		return admin.CreateTopic(name, detail, false)
	})
}

func numbered(name string, count int) []*sarama.ProducerMessage {
	var messages []*sarama.ProducerMessage
	for i := range count {
		key, value := fmt.Sprint("k", i), strings.Repeat(fmt.Sprintf("value %d ", i), 20)
		messages = append(messages, &sarama.ProducerMessage{Topic: name, Key: sarama.StringEncoder(key), Value: sarama.StringEncoder(value)})
	}
	return messages
}

func produce(with *sarama.Config, messages []*sarama.ProducerMessage) error {
	producer, err := sarama.NewSyncProducer(brokers, with)
	if err != nil {
		return err
	}
	return errors.Join(producer.SendMessages(messages), producer.Close())
}

func read(name string, count int, offset int64) ([]*sarama.ConsumerMessage, error) {
	consumer, err := sarama.NewConsumer(brokers, config())
	if err != nil {
		return nil, err
	}
	defer consumer.Close()
	partition, err := consumer.ConsumePartition(name, 0, offset)
	if err != nil {
		return nil, err
	}
	defer partition.Close()
	var messages []*sarama.ConsumerMessage
	for len(messages) < count {
		select {
		case message := <-partition.Messages():
			messages = append(messages, message)
		case <-time.After(15 * time.Second):
			return nil, fmt.Errorf("read %d records of %d", len(messages), count)
		}
	}
	return messages, nil
}

func same(found, wanted any) error {
	if fmt.Sprint(found) != fmt.Sprint(wanted) {
		return fmt.Errorf("%.100s is not %.100s", fmt.Sprint(found), fmt.Sprint(wanted))
	}
	return nil
}

// roundTrip produces records and reads the same ones.
func roundTrip(name string, change func(*sarama.Config)) func() error {
	return func() error {
		topic, err := newTopic(name, 1, nil)
		if err != nil {
			return err
		}
		with := config()
		change(with)
		wanted := numbered(topic, 200)
		if err := produce(with, wanted); err != nil {
			return err
		}
		found, err := read(topic, len(wanted), 0)
		if err != nil {
			return err
		}
		var values []string
		for _, message := range found {
			values = append(values, string(message.Value))
		}
		for _, message := range wanted {
			value, _ := message.Value.Encode()
			if !slices.Contains(values, string(value)) {
				return fmt.Errorf("%.50q is missing", value)
			}
		}
		return nil
	}
}

// onTopic tries something with a new topic of ten records.
func onTopic(name string, try func(sarama.ClusterAdmin, string) error) func() error {
	return func() error {
		retention := "60000"
		topic, err := newTopic(name, 1, map[string]*string{"retention.ms": &retention})
		if err != nil {
			return err
		}
		messages := numbered(topic, 10)
		for i, message := range messages {
			message.Timestamp = time.UnixMilli(1_000_000 + int64(i)*1000)
		}
		if err := produce(config(), messages); err != nil {
			return err
		}
		return withAdmin(func(admin sarama.ClusterAdmin) error { return try(admin, topic) })
	}
}

func offset(topic string, at int64) (int64, error) {
	client, err := sarama.NewClient(brokers, config())
	if err != nil {
		return 0, err
	}
	defer client.Close()
	return client.GetOffset(topic, 0, at)
}

func settings(admin sarama.ClusterAdmin, topic string) error {
	retention := func() (string, error) {
		entries, err := admin.DescribeConfig(sarama.ConfigResource{Type: sarama.TopicResource, Name: topic})
		for _, entry := range entries {
			if entry.Name == "retention.ms" {
				return entry.Value, err
			}
		}
		return "", errors.Join(err, errors.New("no retention.ms"))
	}
	before, err := retention()
	if err != nil {
		return err
	}
	changed := "70000"
	entries := map[string]sarama.IncrementalAlterConfigsEntry{
		"retention.ms": {Operation: sarama.IncrementalAlterConfigsOperationSet, Value: &changed},
	}
	if err := admin.IncrementalAlterConfig(sarama.TopicResource, topic, entries, false); err != nil {
		return err
	}
	after, err := retention()
	return errors.Join(err, same([]string{before, after}, []string{"60000", "70000"}))
}

func headers() error {
	topic, err := newTopic("headers", 1, nil)
	if err != nil {
		return err
	}
	message := numbered(topic, 1)
	for _, header := range [][2]string{{"a", "1"}, {"b", ""}, {"a", "2"}} {
		message[0].Headers = append(message[0].Headers, sarama.RecordHeader{Key: []byte(header[0]), Value: []byte(header[1])})
	}
	if err := produce(config(), message); err != nil {
		return err
	}
	found, err := read(topic, 1, 0)
	if err != nil {
		return err
	}
	var all string
	for _, header := range found[0].Headers {
		all += string(header.Key) + string(header.Value)
	}
	return same(all, "a1ba2")
}

func thousandPartitions() error {
	topic, err := newTopic("thousand", 1000, nil)
	if err != nil {
		return err
	}
	messages := numbered(topic, 1000)
	for i, message := range messages {
		message.Partition = int32(i)
	}
	with := config()
	with.Producer.Partitioner = sarama.NewManualPartitioner
	if err := produce(with, messages); err != nil {
		return err
	}
	return withAdmin(func(admin sarama.ClusterAdmin) error {
		topics, err := admin.DescribeTopics([]string{topic})
		if err != nil {
			return err
		}
		for _, message := range messages {
			if message.Partition < 0 || message.Offset != 0 {
				return fmt.Errorf("a record is at %d of partition %d", message.Offset, message.Partition)
			}
		}
		return errors.Join(same(len(topics[0].Partitions), 1000), admin.DeleteTopic(topic))
	})
}

func main() {
	if scenarios.Work(forScenarios()) {
		return
	}
	scenarios.Report("create and list topics", onTopic("list", func(admin sarama.ClusterAdmin, topic string) error {
		topics, err := admin.ListTopics()
		return errors.Join(err, same(topics[topic].NumPartitions, 1))
	}))
	scenarios.Report("auto-create", func() error {
		topic := scenarios.Topic("auto")
		if err := produce(config(), numbered(topic, 1)); err != nil {
			return err
		}
		_, err := read(topic, 1, 0)
		return err
	})
	codecs := []sarama.CompressionCodec{sarama.CompressionNone, sarama.CompressionGZIP, sarama.CompressionSnappy, sarama.CompressionLZ4, sarama.CompressionZSTD}
	for _, codec := range codecs {
		scenarios.Report("codec "+codec.String(), roundTrip("codec", func(c *sarama.Config) { c.Producer.Compression = codec }))
	}
	scenarios.Report("headers, duplicates too", headers)
	for name, acks := range map[string]sarama.RequiredAcks{"0": sarama.NoResponse, "1": sarama.WaitForLocal, "all": sarama.WaitForAll} {
		scenarios.Report("acks "+name, roundTrip("acks", func(c *sarama.Config) { c.Producer.RequiredAcks = acks }))
	}
	scenarios.Report("idempotence", roundTrip("idempotence", withIdempotence))
	scenarios.Report("offset by time", onTopic("time", func(_ sarama.ClusterAdmin, topic string) error {
		found, err := offset(topic, 1_005_500)
		return errors.Join(err, same(found, 6))
	}))
	scenarios.Report("seek", onTopic("seek", func(_ sarama.ClusterAdmin, topic string) error {
		found, err := read(topic, 1, 7)
		if err != nil {
			return err
		}
		return same(found[0].Offset, 7)
	}))
	scenarios.Report("large message", func() error {
		topic, err := newTopic("large", 1, nil)
		if err != nil {
			return err
		}
		value := bytes.Repeat([]byte("large"), 180_000)
		if err := produce(config(), []*sarama.ProducerMessage{{Topic: topic, Value: sarama.ByteEncoder(value)}}); err != nil {
			return err
		}
		found, err := read(topic, 1, 0)
		if err != nil {
			return err
		}
		return same(bytes.Equal(found[0].Value, value), true)
	})
	scenarios.Report("topic settings", onTopic("settings", settings))
	scenarios.Report("more partitions", onTopic("partitions", func(admin sarama.ClusterAdmin, topic string) error {
		if err := admin.CreatePartitions(topic, 4, nil, false); err != nil {
			return err
		}
		topics, err := admin.DescribeTopics([]string{topic})
		if err != nil {
			return err
		}
		return same(len(topics[0].Partitions), 4)
	}))
	scenarios.Report("delete records", onTopic("delete-records", func(admin sarama.ClusterAdmin, topic string) error {
		if err := admin.DeleteRecords(topic, map[int32]int64{0: 4}); err != nil {
			return err
		}
		first, err := offset(topic, sarama.OffsetOldest)
		return errors.Join(err, same(first, 4))
	}))
	scenarios.Report("1,000 partitions", thousandPartitions)
	scenarios.Report("delete topic", onTopic("delete", func(admin sarama.ClusterAdmin, topic string) error {
		if err := admin.DeleteTopic(topic); err != nil {
			return err
		}
		topics, err := admin.ListTopics()
		_, there := topics[topic]
		return errors.Join(err, same(there, false))
	}))
	scenarios.Groups(forScenarios())
	scenarios.Both(forScenarios())
}
