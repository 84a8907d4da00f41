package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"quipu/interop/scenarios"
)

type member struct {
	client *kgo.Client
	lock   sync.Mutex
	has    map[int32]bool
}

func open(group, topic string, options scenarios.Options) (scenarios.Member, error) {
	return openWith(group, topic, options)
}

// A member whose partitions the coordinator assigns.
func openNewProtocol(group, topic string, options scenarios.Options) (scenarios.Member, error) {
	return openWith(group, topic, options, kgo.ServerSideBalancer())
}

func openWith(group, topic string, options scenarios.Options, more ...kgo.Opt) (scenarios.Member, error) {
	m := &member{has: map[int32]bool{}}
	set := func(has bool) func(context.Context, *kgo.Client, map[string][]int32) {
		return func(_ context.Context, _ *kgo.Client, partitions map[string][]int32) {
			m.lock.Lock()
			defer m.lock.Unlock()
			for _, partition := range partitions[topic] {
				m.has[partition] = has
			}
		}
	}
	with := []kgo.Opt{
		kgo.SeedBrokers(brokers...),
		kgo.ConsumerGroup(group),
		kgo.ConsumeTopics(topic),
		kgo.DisableAutoCommit(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.OnPartitionsAssigned(set(true)),
		kgo.OnPartitionsRevoked(set(false)),
		kgo.OnPartitionsLost(set(false)),
		kgo.Balancers(kgo.RangeBalancer()),
	}
	if options.Cooperative {
		with = append(with, kgo.Balancers(kgo.CooperativeStickyBalancer()))
	}
	if options.Pattern {
		with = append(with, kgo.ConsumeRegex())
	}
	if options.Instance != "" {
		with = append(with, kgo.InstanceID(options.Instance))
	}
	made, err := kgo.NewClient(append(with, more...)...)
	m.client = made
	return m, err
}

func (m *member) Poll() ([]scenarios.Place, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	var places []scenarios.Place
	fetches := m.client.PollFetches(ctx)
	fetches.EachRecord(func(record *kgo.Record) {
		places = append(places, scenarios.Place{Partition: record.Partition, Offset: record.Offset})
	})
	if err := fetches.Err(); err != nil && ctx.Err() == nil {
		return nil, err
	}
	return places, nil
}

func (m *member) Assigned() []int32 {
	m.lock.Lock()
	defer m.lock.Unlock()
	var assigned []int32
	for partition, has := range m.has {
		if has {
			assigned = append(assigned, partition)
		}
	}
	return assigned
}

func (m *member) Commit() error {
	return m.client.CommitUncommittedOffsets(context.Background())
}

func (m *member) Close() error {
	m.client.Close()
	return nil
}

func listAndDelete(group string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	admin := kadm.NewClient(client())
	defer admin.Close()
	listed, err := admin.ListGroups(ctx)
	if err != nil {
		return err
	}
	if listed[group].State != "Empty" {
		return fmt.Errorf("it is listed as %q", listed[group].State)
	}
	described, err := admin.DescribeGroups(ctx, group)
	if err != nil {
		return err
	}
	if err := same(described[group].State, "Empty"); err != nil {
		return err
	}
	offsets, err := admin.FetchOffsets(ctx, group)
	if err != nil || len(offsets) != 1 {
		return fmt.Errorf("its offsets are of %d topics: %w", len(offsets), err)
	}
	if deleted, err := admin.DeleteGroups(ctx, group); err != nil || deleted[group].Err != nil {
		return fmt.Errorf("not deleted: %w", err)
	}
	listed, err = admin.ListGroups(ctx)
	if err != nil {
		return err
	}
	_, there := listed[group]
	return same(there, false)
}

type sender struct {
	client *kgo.Client
}

func newSender(topic string) (scenarios.Sender, error) {
	made, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.DefaultProduceTopic(topic))
	return sender{made}, err
}

func (s sender) Send(value string, acked func()) error {
	s.client.Produce(context.Background(), kgo.StringRecord(value), func(_ *kgo.Record, err error) {
		if err == nil {
			acked()
		}
	})
	return nil
}

func (s sender) Close() error {
	defer s.client.Close()
	return s.client.Flush(context.Background())
}

func forScenarios() scenarios.Client {
	return scenarios.Client{
		NewTopic: func(name string, partitions int) error {
			admin := kadm.NewClient(client())
			defer admin.Close()
			_, err := admin.CreateTopic(context.Background(), int32(partitions), 1, nil, name)
			return err
		},
		Produce: func(topic string, values []string) error {
			var records []*kgo.Record
			for _, value := range values {
				records = append(records, kgo.KeyStringRecord(value, value))
			}
			return produce(context.Background(), topic, records)
		},
		Sender:        newSender,
		Open:          open,
		ListAndDelete: listAndDelete,
		Write:         write,
		Read:          readAll,
	}
}
