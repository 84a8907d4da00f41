package main

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"quipu/interop/scenarios"
)

var codecs = map[string]kgo.CompressionCodec{
	"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
	"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
}

func write(topic, codec string, records []scenarios.Record) error {
	var made []*kgo.Record
	for _, record := range records {
		one := &kgo.Record{Key: []byte(record.Key), Value: []byte(record.Value), Timestamp: time.UnixMilli(record.Timestamp)}
		for _, header := range record.Headers {
			one.Headers = append(one.Headers, kgo.RecordHeader{Key: header.Key, Value: []byte(header.Value)})
		}
		made = append(made, one)
	}
	// The client takes a record's time for when it was made, and gives up on one of long ago.
	return produce(context.Background(), topic, made, kgo.ProducerBatchCompression(codecs[codec]), kgo.RecordDeliveryTimeout(0))
}

func readAll(topic string, count int) ([]scenarios.Record, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	found, err := read(ctx, topic, count, kgo.NewOffset().AtStart())
	var records []scenarios.Record
	for _, one := range found {
		record := scenarios.Record{Key: string(one.Key), Value: string(one.Value), Timestamp: one.Timestamp.UnixMilli()}
		for _, header := range one.Headers {
			record.Headers = append(record.Headers, scenarios.Header{Key: header.Key, Value: string(header.Value)})
		}
		records = append(records, record)
	}
	return records, err
}
