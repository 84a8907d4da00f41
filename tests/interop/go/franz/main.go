// franz-go.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"quipu/interop/scenarios"
)

var (
	brokers = strings.Split(os.Getenv("BOOTSTRAP"), ",")
	names   int
)

func client(options ...kgo.Opt) *kgo.Client {
	options = append([]kgo.Opt{kgo.SeedBrokers(brokers...), kgo.RecordDeliveryTimeout(30 * time.Second)}, options...)
	made, err := kgo.NewClient(options...)
	if err != nil {
		panic(err)
	}
	return made
}

func topic(name string) string {
	names++
	return fmt.Sprintf("%s-%d-%d-%d", name, os.Getpid(), time.Now().UnixMilli(), names)
}

func check(feature string, run func(ctx context.Context, admin *kadm.Client) error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	admin := kadm.NewClient(client())
	defer admin.Close()
	if err := run(ctx, admin); err != nil {
		line := strings.Join(strings.Fields(err.Error()), " ")
		fmt.Printf("%s\tfail\t%.200s\n", feature, line)
		return
	}
	fmt.Printf("%s\tok\t\n", feature)
}

func newTopic(ctx context.Context, admin *kadm.Client, name string, partitions int32, settings map[string]*string) (string, error) {
	name = topic(name)
	_, err := admin.CreateTopic(ctx, partitions, 1, settings, name)
	return name, err
}

func produce(ctx context.Context, name string, records []*kgo.Record, options ...kgo.Opt) error {
	producer := client(append(options, kgo.DefaultProduceTopic(name))...)
	defer producer.Close()
	return producer.ProduceSync(ctx, records...).FirstErr()
}

func numbered(count int) []*kgo.Record {
	var records []*kgo.Record
	for i := range count {
		value := strings.Repeat(fmt.Sprintf("value %d ", i), 20)
		records = append(records, &kgo.Record{Key: fmt.Appendf(nil, "k%d", i), Value: []byte(value)})
	}
	return records
}

func read(ctx context.Context, name string, count int, at kgo.Offset) ([]*kgo.Record, error) {
	places := map[string]map[int32]kgo.Offset{name: {0: at}}
	consumer := client(kgo.ConsumePartitions(places))
	defer consumer.Close()
	var records []*kgo.Record
	for len(records) < count {
		fetches := consumer.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return nil, err
		}
		records = append(records, fetches.Records()...)
	}
	return records, nil
}

func same(found, wanted any) error {
	if fmt.Sprint(found) != fmt.Sprint(wanted) {
		return fmt.Errorf("%.100s is not %.100s", fmt.Sprint(found), fmt.Sprint(wanted))
	}
	return nil
}

// roundTrip produces records and reads the same ones.
func roundTrip(name string, options ...kgo.Opt) func(context.Context, *kadm.Client) error {
	return func(ctx context.Context, admin *kadm.Client) error {
		name, err := newTopic(ctx, admin, name, 1, nil)
		if err != nil {
			return err
		}
		wanted := numbered(200)
		if err := produce(ctx, name, wanted, options...); err != nil {
			return err
		}
		found, err := read(ctx, name, len(wanted), kgo.NewOffset().AtStart())
		if err != nil {
			return err
		}
		for i, record := range found {
			if !bytes.Equal(record.Key, wanted[i].Key) || !bytes.Equal(record.Value, wanted[i].Value) {
				return fmt.Errorf("record %d is another", i)
			}
		}
		return same(len(found), len(wanted))
	}
}

func main() {
	if scenarios.Work(forScenarios()) {
		return
	}
	check("create and list topics", func(ctx context.Context, admin *kadm.Client) error {
		name, err := newTopic(ctx, admin, "list", 3, nil)
		if err != nil {
			return err
		}
		topics, err := admin.ListTopics(ctx)
		if err != nil {
			return err
		}
		return same(len(topics[name].Partitions), 3)
	})
	check("auto-create", func(ctx context.Context, _ *kadm.Client) error {
		return produce(ctx, topic("auto"), numbered(1), kgo.AllowAutoTopicCreation())
	})
	for name, codec := range codecs {
		check("codec "+name, roundTrip(name, kgo.ProducerBatchCompression(codec)))
	}
	check("headers, duplicates too", func(ctx context.Context, admin *kadm.Client) error {
		name, err := newTopic(ctx, admin, "headers", 1, nil)
		if err != nil {
			return err
		}
		wanted := []kgo.RecordHeader{{Key: "a", Value: []byte("1")}, {Key: "b", Value: []byte{}}, {Key: "a", Value: []byte("2")}}
		if err := produce(ctx, name, []*kgo.Record{{Value: []byte("v"), Headers: wanted}}); err != nil {
			return err
		}
		found, err := read(ctx, name, 1, kgo.NewOffset().AtStart())
		if err != nil {
			return err
		}
		return same(found[0].Headers, wanted)
	})
	check("acks 0", roundTrip("acks-0", kgo.RequiredAcks(kgo.NoAck()), kgo.DisableIdempotentWrite()))
	check("acks 1", roundTrip("acks-1", kgo.RequiredAcks(kgo.LeaderAck()), kgo.DisableIdempotentWrite()))
	check("acks all", roundTrip("acks-all", kgo.RequiredAcks(kgo.AllISRAcks()), kgo.DisableIdempotentWrite()))
	check("idempotence", roundTrip("idempotence"))
	check("offset by time", func(ctx context.Context, admin *kadm.Client) error {
		name, err := newTopic(ctx, admin, "time", 1, nil)
		if err != nil {
			return err
		}
		// The client gives up on records of long ago.
		records, first := numbered(20), time.Now().UnixMilli()
		for i, record := range records {
			record.Timestamp = time.UnixMilli(first + int64(i*1000))
		}
		if err := produce(ctx, name, records); err != nil {
			return err
		}
		found, err := admin.ListOffsetsAfterMilli(ctx, first+5500, name)
		if err != nil {
			return err
		}
		newest, err := admin.ListMaxTimestampOffsets(ctx, name)
		if err != nil {
			return err
		}
		return errors.Join(same(found[name][0].Offset, 6), same(newest[name][0].Offset, 19))
	})
	check("seek", func(ctx context.Context, admin *kadm.Client) error {
		name, err := newTopic(ctx, admin, "seek", 1, nil)
		if err != nil {
			return err
		}
		if err := produce(ctx, name, numbered(100)); err != nil {
			return err
		}
		found, err := read(ctx, name, 1, kgo.NewOffset().At(42))
		if err != nil {
			return err
		}
		return same(found[0].Offset, 42)
	})
	check("large message", func(ctx context.Context, admin *kadm.Client) error {
		name, err := newTopic(ctx, admin, "large", 1, nil)
		if err != nil {
			return err
		}
		value := bytes.Repeat([]byte("0123456789"), 90_000)
		if err := produce(ctx, name, []*kgo.Record{{Value: value}}, kgo.ProducerBatchCompression(kgo.NoCompression())); err != nil {
			return err
		}
		found, err := read(ctx, name, 1, kgo.NewOffset().AtStart())
		if err != nil {
			return err
		}
		return same(bytes.Equal(found[0].Value, value), true)
	})
	check("topic settings", func(ctx context.Context, admin *kadm.Client) error {
		before, after := "60000", "70000"
		name, err := newTopic(ctx, admin, "settings", 1, map[string]*string{"retention.ms": &before})
		if err != nil {
			return err
		}
		change := kadm.AlterConfig{Op: kadm.SetConfig, Name: "retention.ms", Value: &after}
		if _, err := admin.AlterTopicConfigs(ctx, []kadm.AlterConfig{change}, name); err != nil {
			return err
		}
		described, err := admin.DescribeTopicConfigs(ctx, name)
		if err != nil {
			return err
		}
		for _, setting := range described[0].Configs {
			if setting.Key == "retention.ms" {
				return same(*setting.Value, after)
			}
		}
		return errors.New("no retention.ms")
	})
	check("more partitions", func(ctx context.Context, admin *kadm.Client) error {
		name, err := newTopic(ctx, admin, "partitions", 1, nil)
		if err != nil {
			return err
		}
		if _, err := admin.UpdatePartitions(ctx, 4, name); err != nil {
			return err
		}
		topics, err := admin.ListTopics(ctx, name)
		if err != nil {
			return err
		}
		return same(len(topics[name].Partitions), 4)
	})
	check("delete records", func(ctx context.Context, admin *kadm.Client) error {
		name, err := newTopic(ctx, admin, "delete-records", 1, nil)
		if err != nil {
			return err
		}
		if err := produce(ctx, name, numbered(10)); err != nil {
			return err
		}
		offsets := kadm.Offsets{}
		offsets.Add(kadm.Offset{Topic: name, Partition: 0, At: 4, LeaderEpoch: -1})
		if _, err := admin.DeleteRecords(ctx, offsets); err != nil {
			return err
		}
		start, err := admin.ListStartOffsets(ctx, name)
		if err != nil {
			return err
		}
		return same(start[name][0].Offset, 4)
	})
	check("1,000 partitions", func(ctx context.Context, admin *kadm.Client) error {
		name, err := newTopic(ctx, admin, "thousand", 1000, nil)
		if err != nil {
			return err
		}
		var records []*kgo.Record
		for partition := range 1000 {
			records = append(records, &kgo.Record{Value: []byte("v"), Partition: int32(partition)})
		}
		if err := produce(ctx, name, records, kgo.RecordPartitioner(kgo.ManualPartitioner())); err != nil {
			return err
		}
		ends, err := admin.ListEndOffsets(ctx, name)
		if err != nil {
			return err
		}
		var read int64
		for _, end := range ends[name] {
			read += end.Offset
		}
		_, err = admin.DeleteTopics(ctx, name)
		return errors.Join(err, same([]any{len(ends[name]), read}, []any{1000, 1000}))
	})
	check("delete topic", func(ctx context.Context, admin *kadm.Client) error {
		name, err := newTopic(ctx, admin, "delete", 1, nil)
		if err != nil {
			return err
		}
		if _, err := admin.DeleteTopics(ctx, name); err != nil {
			return err
		}
		topics, err := admin.ListTopics(ctx)
		if err != nil {
			return err
		}
		return same(topics.Has(name), false)
	})
	client := forScenarios()
	scenarios.Groups(client)
	scenarios.Both(client)
	client.Open = openNewProtocol
	scenarios.NewProtocol(client)
}
