package main

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"

	"quipu/interop/scenarios"
)

// A member of a group: each generation has a reader for each partition that it is assigned.
type member struct {
	group      *kafka.ConsumerGroup
	topic      string
	lock       sync.Mutex
	generation *kafka.Generation
	places     []scenarios.Place
	next       map[int]int64
	failure    error
}

func open(group, topic string, _ scenarios.Options) (scenarios.Member, error) {
	made, err := kafka.NewConsumerGroup(kafka.ConsumerGroupConfig{
		ID:                group,
		Brokers:           brokers,
		Topics:            []string{topic},
		StartOffset:       kafka.FirstOffset,
		HeartbeatInterval: time.Second,
	})
	m := &member{group: made, topic: topic, next: map[int]int64{}}
	if err == nil {
		go m.follow()
	}
	return m, err
}

func (m *member) follow() {
	for {
		generation, err := m.group.Next(ctx)
		if errors.Is(err, kafka.ErrGroupClosed) {
			return
		}
		m.lock.Lock()
		m.generation, m.failure = generation, err
		m.lock.Unlock()
		if err != nil {
			continue
		}
		for _, assigned := range generation.Assignments[m.topic] {
			generation.Start(func(ctx context.Context) { m.read(ctx, assigned) })
		}
	}
}

func (m *member) read(ctx context.Context, assigned kafka.PartitionAssignment) {
	reader := kafka.NewReader(kafka.ReaderConfig{
		Brokers: brokers, Topic: m.topic, Partition: assigned.ID, MaxWait: 500 * time.Millisecond,
	})
	defer reader.Close()
	if err := reader.SetOffset(assigned.Offset); err != nil {
		m.lock.Lock()
		m.failure = err
		m.lock.Unlock()
		return
	}
	for ctx.Err() == nil {
		message, err := reader.ReadMessage(ctx)
		m.lock.Lock()
		if err == nil {
			m.places = append(m.places, scenarios.Place{Partition: int32(message.Partition), Offset: message.Offset})
			m.next[message.Partition] = message.Offset + 1
		} else if ctx.Err() == nil {
			m.failure = err
		}
		m.lock.Unlock()
	}
}

func (m *member) Poll() ([]scenarios.Place, error) {
	time.Sleep(100 * time.Millisecond)
	m.lock.Lock()
	defer m.lock.Unlock()
	places, failure := m.places, m.failure
	m.places, m.failure = nil, nil
	return places, failure
}

func (m *member) Assigned() []int32 {
	m.lock.Lock()
	defer m.lock.Unlock()
	var assigned []int32
	if m.generation != nil {
		for _, partition := range m.generation.Assignments[m.topic] {
			assigned = append(assigned, int32(partition.ID))
		}
	}
	return assigned
}

func (m *member) Commit() error {
	m.lock.Lock()
	generation, next := m.generation, maps.Clone(m.next)
	m.lock.Unlock()
	if generation == nil {
		return errors.New("it has no generation")
	}
	return generation.CommitOffsets(map[string]map[int]int64{m.topic: next})
}

func (m *member) Close() error {
	return m.group.Close()
}

func listAndDelete(group string) error {
	listed := func() (bool, error) {
		list, err := admin.ListGroups(ctx, &kafka.ListGroupsRequest{})
		if err != nil {
			return false, err
		}
		for _, found := range list.Groups {
			if found.GroupID == group {
				return true, list.Error
			}
		}
		return false, list.Error
	}
	there, err := listed()
	if err != nil {
		return err
	}
	described, err := admin.DescribeGroups(ctx, &kafka.DescribeGroupsRequest{GroupIDs: []string{group}})
	if err != nil {
		return err
	}
	if err := same([]any{there, described.Groups[0].GroupState}, []any{true, "Empty"}); err != nil {
		return err
	}
	deleted, err := admin.DeleteGroups(ctx, &kafka.DeleteGroupsRequest{GroupIDs: []string{group}})
	if err != nil {
		return err
	}
	there, err = listed()
	return errors.Join(err, deleted.Errors[group], same(there, false))
}

// It has no idempotence: what is produced again may be there twice.
type sender struct {
	writer *kafka.Writer
}

func newSender(topic string) (scenarios.Sender, error) {
	writer := &kafka.Writer{
		Addr:         kafka.TCP(brokers...),
		Topic:        topic,
		BatchTimeout: 10 * time.Millisecond,
		RequiredAcks: kafka.RequireAll,
		MaxAttempts:  100,
		Async:        true,
		Completion: func(messages []kafka.Message, err error) {
			for _, message := range messages {
				if err == nil {
					message.WriterData.(func())()
				}
			}
		},
	}
	return sender{writer}, nil
}

func (s sender) Send(value string, acked func()) error {
	return s.writer.WriteMessages(ctx, kafka.Message{Value: []byte(value), WriterData: acked})
}

func (s sender) Close() error {
	return s.writer.Close()
}

func forScenarios() scenarios.Client {
	return scenarios.Client{
		NewTopic: func(name string, partitions int) error {
			return create(kafka.TopicConfig{Topic: name, NumPartitions: partitions, ReplicationFactor: 1})
		},
		Produce: func(topic string, values []string) error {
			return produce(topic, numbered(len(values)), nil)
		},
		Sender:        newSender,
		Open:          open,
		ListAndDelete: listAndDelete,
		Write:         write,
		Read:          readAll,
		NoStatic:      "the client has no static members",
		NoCooperative: "the client has no such assignor",
		NoPattern:     "the client cannot",
	}
}
