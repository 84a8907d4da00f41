package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/IBM/sarama"

	"quipu/interop/scenarios"
)

// A member of a group: its session's goroutines hand over what they read.
type member struct {
	group   sarama.ConsumerGroup
	stop    context.CancelFunc
	done    chan struct{}
	lock    sync.Mutex
	session sarama.ConsumerGroupSession
	places  []scenarios.Place
	failure error
}

func open(group, topic string, options scenarios.Options) (scenarios.Member, error) {
	with := config()
	with.Consumer.Group.InstanceId = options.Instance
	if options.Cooperative {
		with.Consumer.Group.Rebalance.GroupStrategies = []sarama.BalanceStrategy{sarama.NewBalanceStrategyCooperativeSticky()}
	}
	made, err := sarama.NewConsumerGroup(brokers, group, with)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	m := &member{group: made, stop: stop, done: make(chan struct{})}
	go func() {
		defer close(m.done)
		for ctx.Err() == nil {
			if err := made.Consume(ctx, []string{topic}, m); err != nil && ctx.Err() == nil {
				m.set(func() { m.failure = err })
			}
		}
	}()
	return m, nil
}

func (m *member) set(change func()) {
	m.lock.Lock()
	defer m.lock.Unlock()
	change()
}

func (m *member) Setup(session sarama.ConsumerGroupSession) error {
	m.set(func() { m.session = session })
	return nil
}

func (m *member) Cleanup(sarama.ConsumerGroupSession) error {
	m.set(func() { m.session = nil })
	return nil
}

func (m *member) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for {
		select {
		case message, more := <-claim.Messages():
			if !more {
				return nil
			}
			session.MarkMessage(message, "")
			m.set(func() {
				m.places = append(m.places, scenarios.Place{Partition: message.Partition, Offset: message.Offset})
			})
		case <-session.Context().Done():
			return nil
		}
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
	if m.session == nil {
		return nil
	}
	for _, partitions := range m.session.Claims() {
		return partitions
	}
	return nil
}

func (m *member) Commit() error {
	m.lock.Lock()
	defer m.lock.Unlock()
	if m.session == nil {
		return errors.New("it has no session")
	}
	m.session.Commit()
	return nil
}

func (m *member) Close() error {
	m.stop()
	<-m.done
	return m.group.Close()
}

func listAndDelete(group string) error {
	return withAdmin(func(admin sarama.ClusterAdmin) error {
		listed, err := admin.ListConsumerGroups()
		if err != nil {
			return err
		}
		_, there := listed[group]
		described, err := admin.DescribeConsumerGroups([]string{group})
		if err != nil {
			return err
		}
		offsets, err := admin.ListConsumerGroupOffsets(group, nil)
		if err != nil {
			return err
		}
		if err := same([]any{there, described[0].State, len(offsets.Blocks)}, []any{true, "Empty", 1}); err != nil {
			return err
		}
		if err := admin.DeleteConsumerGroup(group); err != nil {
			return err
		}
		listed, err = admin.ListConsumerGroups()
		_, there = listed[group]
		return errors.Join(err, same(there, false))
	})
}

type sender struct {
	producer sarama.AsyncProducer
	topic    string
	done     chan struct{}
}

func newSender(topic string) (scenarios.Sender, error) {
	with := config()
	withIdempotence(with)
	with.Producer.Retry.Max = 100
	made, err := sarama.NewAsyncProducer(brokers, with)
	if err != nil {
		return nil, err
	}
	s := sender{producer: made, topic: topic, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		for message := range made.Successes() {
			message.Metadata.(func())()
		}
	}()
	go func() {
		for err := range made.Errors() {
			fmt.Fprintln(os.Stderr, err)
		}
	}()
	return s, nil
}

func (s sender) Send(value string, acked func()) error {
	s.producer.Input() <- &sarama.ProducerMessage{Topic: s.topic, Value: sarama.StringEncoder(value), Metadata: acked}
	return nil
}

func (s sender) Close() error {
	s.producer.AsyncClose()
	<-s.done
	return nil
}

func forScenarios() scenarios.Client {
	return scenarios.Client{
		NewTopic: func(name string, partitions int) error {
			return withAdmin(func(admin sarama.ClusterAdmin) error {
				detail := &sarama.TopicDetail{NumPartitions: int32(partitions), ReplicationFactor: 1}
				return admin.CreateTopic(name, detail, false)
			})
		},
		Produce: func(topic string, values []string) error {
			return produce(config(), numbered(topic, len(values)))
		},
		Sender:        newSender,
		Open:          open,
		ListAndDelete: listAndDelete,
		Write:         write,
		Read:          readAll,
		NoPattern:     "the client cannot",
	}
}
