package main

import (
	"time"

	"github.com/IBM/sarama"

	"quipu/interop/scenarios"
)

func write(topic, codec string, records []scenarios.Record) error {
	with := config()
	if err := with.Producer.Compression.UnmarshalText([]byte(codec)); err != nil {
		return err
	}
	var messages []*sarama.ProducerMessage
	for _, record := range records {
		message := &sarama.ProducerMessage{
			Topic:     topic,
			Key:       sarama.StringEncoder(record.Key),
			Value:     sarama.StringEncoder(record.Value),
			Timestamp: time.UnixMilli(record.Timestamp),
		}
		for _, header := range record.Headers {
			message.Headers = append(message.Headers, sarama.RecordHeader{Key: []byte(header.Key), Value: []byte(header.Value)})
		}
		messages = append(messages, message)
	}
	return produce(with, messages)
}

func readAll(topic string, count int) ([]scenarios.Record, error) {
	found, err := read(topic, count, 0)
	var records []scenarios.Record
	for _, message := range found {
		record := scenarios.Record{Key: string(message.Key), Value: string(message.Value), Timestamp: message.Timestamp.UnixMilli()}
		for _, header := range message.Headers {
			record.Headers = append(record.Headers, scenarios.Header{Key: string(header.Key), Value: string(header.Value)})
		}
		records = append(records, record)
	}
	return records, err
}
