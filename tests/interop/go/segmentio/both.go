package main

import (
	"time"

	"github.com/segmentio/kafka-go"

	"quipu/interop/scenarios"
)

var codecs = map[string]kafka.Compression{"none": 0, "gzip": kafka.Gzip, "snappy": kafka.Snappy, "lz4": kafka.Lz4, "zstd": kafka.Zstd}

func write(topic, codec string, records []scenarios.Record) error {
	var messages []kafka.Message
	for _, record := range records {
		message := kafka.Message{Key: []byte(record.Key), Value: []byte(record.Value), Time: time.UnixMilli(record.Timestamp)}
		for _, header := range record.Headers {
			message.Headers = append(message.Headers, kafka.Header{Key: header.Key, Value: []byte(header.Value)})
		}
		messages = append(messages, message)
	}
	return produce(topic, messages, func(writer *kafka.Writer) { writer.Compression = codecs[codec] })
}

func readAll(topic string, count int) ([]scenarios.Record, error) {
	found, err := read(topic, count, kafka.FirstOffset)
	var records []scenarios.Record
	for _, message := range found {
		record := scenarios.Record{Key: string(message.Key), Value: string(message.Value), Timestamp: message.Time.UnixMilli()}
		for _, header := range message.Headers {
			record.Headers = append(record.Headers, scenarios.Header{Key: header.Key, Value: string(header.Value)})
		}
		records = append(records, record)
	}
	return records, err
}
