// segmentio/kafka-go.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"

	"quipu/interop/scenarios"
)

var (
	brokers = strings.Split(os.Getenv("BOOTSTRAP"), ",")
	admin   = &kafka.Client{Addr: kafka.TCP(brokers...), Timeout: 30 * time.Second}
	ctx     = context.Background()
)

func newTopic(name string, partitions int, settings ...kafka.ConfigEntry) (string, error) {
	topic := kafka.TopicConfig{Topic: scenarios.Topic(name), NumPartitions: partitions, ReplicationFactor: 1, ConfigEntries: settings}
	return topic.Topic, create(topic)
}

func create(topic kafka.TopicConfig) error {
	created, err := admin.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{topic}})
	if err != nil {
		return err
	}
	return created.Errors[topic.Topic]
}

func numbered(count int) []kafka.Message {
	var messages []kafka.Message
	for i := range count {
		value := strings.Repeat(fmt.Sprintf("value %d ", i), 20)
		messages = append(messages, kafka.Message{Key: fmt.Append(nil, "k", i), Value: []byte(value)})
	}
	return messages
}

func produce(topic string, messages []kafka.Message, change func(*kafka.Writer)) error {
	writer := &kafka.Writer{
		Addr:         kafka.TCP(brokers...),
		Topic:        topic,
		Balancer:     &kafka.Hash{},
		BatchTimeout: 10 * time.Millisecond,
		RequiredAcks: kafka.RequireAll,
	}
	if change != nil {
		change(writer)
	}
	return errors.Join(writer.WriteMessages(ctx, messages...), writer.Close())
}

func read(topic string, count int, offset int64) ([]kafka.Message, error) {
	reader := kafka.NewReader(kafka.ReaderConfig{Brokers: brokers, Topic: topic, MaxWait: time.Second})
	defer reader.Close()
	if err := reader.SetOffset(offset); err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	var messages []kafka.Message
	for len(messages) < count {
		message, err := reader.ReadMessage(limited)
		if err != nil {
			return nil, err
		}
		messages = append(messages, message)
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
func roundTrip(name string, change func(*kafka.Writer)) func() error {
	return func() error {
		topic, err := newTopic(name, 1)
		if err != nil {
			return err
		}
		wanted := numbered(200)
		if err := produce(topic, wanted, change); err != nil {
			return err
		}
		found, err := read(topic, len(wanted), kafka.FirstOffset)
		if err != nil {
			return err
		}
		for i, message := range found {
			if !bytes.Equal(message.Value, wanted[i].Value) {
				return fmt.Errorf("record %d is another", i)
			}
		}
		return nil
	}
}

// onTopic tries something with a new topic of ten records.
func onTopic(name string, try func(string) error) func() error {
	return func() error {
		topic, err := newTopic(name, 1, kafka.ConfigEntry{ConfigName: "retention.ms", ConfigValue: "60000"})
		if err != nil {
			return err
		}
		messages := numbered(10)
		for i := range messages {
			messages[i].Time = time.UnixMilli(1_000_000 + int64(i)*1000)
		}
		if err := produce(topic, messages, nil); err != nil {
			return err
		}
		return try(topic)
	}
}

// hasPartitions waits until a topic has so many: the client goes on for seconds by what it was told before.
func hasPartitions(topic string, wanted int) error {
	for tries := 0; ; tries++ {
		metadata, err := admin.Metadata(ctx, &kafka.MetadataRequest{})
		if err != nil {
			return err
		}
		count := 0
		for _, found := range metadata.Topics {
			if found.Name == topic {
				count = len(found.Partitions)
			}
		}
		if count == wanted || tries == 20 {
			return same(count, wanted)
		}
		time.Sleep(500 * time.Millisecond)
	}
}

func byTime(topic string) error {
	at := kafka.TimeOffsetOf(0, time.UnixMilli(1_005_500))
	listed, err := admin.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{topic: {at}}})
	if err != nil {
		return err
	}
	for offset := range listed.Topics[topic][0].Offsets {
		return same(offset, 6)
	}
	return errors.New("no offset")
}

func settings(topic string) error {
	retention := func() (string, error) {
		resource := kafka.DescribeConfigRequestResource{ResourceType: kafka.ResourceTypeTopic, ResourceName: topic, ConfigNames: []string{"retention.ms"}}
		described, err := admin.DescribeConfigs(ctx, &kafka.DescribeConfigsRequest{Resources: []kafka.DescribeConfigRequestResource{resource}})
		if err != nil {
			return "", err
		}
		return described.Resources[0].ConfigEntries[0].ConfigValue, nil
	}
	before, err := retention()
	if err != nil {
		return err
	}
	change := kafka.IncrementalAlterConfigsRequestConfig{Name: "retention.ms", Value: "70000", ConfigOperation: kafka.ConfigOperationSet}
	resource := kafka.IncrementalAlterConfigsRequestResource{
		ResourceType: kafka.ResourceTypeTopic,
		ResourceName: topic,
		Configs:      []kafka.IncrementalAlterConfigsRequestConfig{change},
	}
	altered, err := admin.IncrementalAlterConfigs(ctx, &kafka.IncrementalAlterConfigsRequest{Resources: []kafka.IncrementalAlterConfigsRequestResource{resource}})
	if err != nil {
		return err
	}
	after, err := retention()
	return errors.Join(err, altered.Resources[0].Error, same([]string{before, after}, []string{"60000", "70000"}))
}

func thousandPartitions() error {
	topic, err := newTopic("thousand", 1000)
	if err != nil {
		return err
	}
	// One after the other in turn.
	if err := produce(topic, numbered(1000), func(writer *kafka.Writer) { writer.Balancer = &kafka.RoundRobin{} }); err != nil {
		return err
	}
	var asked []kafka.OffsetRequest
	for partition := range 1000 {
		asked = append(asked, kafka.LastOffsetOf(partition))
	}
	listed, err := admin.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{topic: asked}})
	if err != nil {
		return err
	}
	for _, partition := range listed.Topics[topic] {
		if partition.Error != nil || partition.LastOffset != 1 {
			return fmt.Errorf("partition %d ends at %d: %w", partition.Partition, partition.LastOffset, partition.Error)
		}
	}
	deleted, err := admin.DeleteTopics(ctx, &kafka.DeleteTopicsRequest{Topics: []string{topic}})
	if err != nil {
		return err
	}
	return errors.Join(deleted.Errors[topic], same(len(listed.Topics[topic]), 1000))
}

func main() {
	if scenarios.Work(forScenarios()) {
		return
	}
	scenarios.Report("create and list topics", func() error {
		topic, err := newTopic("list", 3)
		if err != nil {
			return err
		}
		return hasPartitions(topic, 3)
	})
	scenarios.Report("auto-create", func() error {
		topic := scenarios.Topic("auto")
		// The client leaves it to who writes to come again until the topic is there.
		var err error
		for range 10 {
			err = produce(topic, numbered(1), func(writer *kafka.Writer) { writer.AllowAutoTopicCreation = true })
			if err == nil {
				break
			}
		}
		if err != nil {
			return err
		}
		_, err = read(topic, 1, kafka.FirstOffset)
		return err
	})
	for name, codec := range codecs {
		scenarios.Report("codec "+name, roundTrip(name, func(writer *kafka.Writer) { writer.Compression = codec }))
	}
	scenarios.Report("headers, duplicates too", onTopic("headers", func(topic string) error {
		wanted := []kafka.Header{{Key: "a", Value: []byte("1")}, {Key: "b", Value: []byte{}}, {Key: "a", Value: []byte("2")}}
		if err := produce(topic, []kafka.Message{{Value: []byte("v"), Headers: wanted}}, nil); err != nil {
			return err
		}
		found, err := read(topic, 1, 10)
		if err != nil {
			return err
		}
		return same(found[0].Headers, wanted)
	}))
	for name, acks := range map[string]kafka.RequiredAcks{"0": kafka.RequireNone, "1": kafka.RequireOne, "all": kafka.RequireAll} {
		scenarios.Report("acks "+name, roundTrip("acks", func(writer *kafka.Writer) { writer.RequiredAcks = acks }))
	}
	scenarios.Say("idempotence", "skip", "the client cannot")
	scenarios.Report("offset by time", onTopic("time", byTime))
	scenarios.Report("seek", onTopic("seek", func(topic string) error {
		found, err := read(topic, 1, 7)
		if err != nil {
			return err
		}
		return same(found[0].Offset, 7)
	}))
	scenarios.Report("large message", onTopic("large", func(topic string) error {
		value := bytes.Repeat([]byte("large"), 180_000)
		if err := produce(topic, []kafka.Message{{Value: value}}, nil); err != nil {
			return err
		}
		found, err := read(topic, 1, 10)
		if err != nil {
			return err
		}
		return same(bytes.Equal(found[0].Value, value), true)
	}))
	scenarios.Report("topic settings", onTopic("settings", settings))
	scenarios.Report("more partitions", onTopic("partitions", func(topic string) error {
		more := []kafka.TopicPartitionsConfig{{Name: topic, Count: 4}}
		added, err := admin.CreatePartitions(ctx, &kafka.CreatePartitionsRequest{Topics: more})
		if err != nil {
			return err
		}
		return errors.Join(added.Errors[topic], hasPartitions(topic, 4))
	}))
	scenarios.Say("delete records", "skip", "the client cannot")
	scenarios.Report("1,000 partitions", thousandPartitions)
	scenarios.Report("delete topic", onTopic("delete", func(topic string) error {
		deleted, err := admin.DeleteTopics(ctx, &kafka.DeleteTopicsRequest{Topics: []string{topic}})
		if err != nil {
			return err
		}
		return errors.Join(deleted.Errors[topic], hasPartitions(topic, 0))
	}))
	scenarios.Groups(forScenarios())
	scenarios.Both(forScenarios())
}
