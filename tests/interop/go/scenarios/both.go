package scenarios

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
)

// Header of a record.
type Header struct{ Key, Value string }

// Record is one with everything; its time is in milliseconds since 1970.
type Record struct {
	Key, Value string
	Headers    []Header
	Timestamp  int64
}

var codecs = []string{"none", "gzip", "snappy", "lz4", "zstd"}

const count = 50

func records() []Record {
	var made []Record
	for i := range count {
		made = append(made, Record{
			Key:       fmt.Sprint("k", i),
			Value:     strings.Repeat(fmt.Sprintf("value %d ", i), 20),
			Headers:   []Header{{"a", "1"}, {"b", ""}, {"a", "2"}},
			Timestamp: 1_700_000_000_000 + int64(i),
		})
	}
	return made
}

// All records as gRPC has them.
func overGRPC(topic string) ([]Record, error) {
	shown, err := quipu("", "consume", topic, "--format", "json")
	if err != nil {
		return nil, err
	}
	var found []Record
	decoder := json.NewDecoder(strings.NewReader(string(shown)))
	for decoder.More() {
		var record Record
		if err := decoder.Decode(&record); err != nil {
			return nil, err
		}
		found = append(found, record)
	}
	return found, nil
}

func sameRecords(found, wanted []Record) error {
	if !reflect.DeepEqual(found, wanted) {
		return fmt.Errorf("%.90s are not %.90s", fmt.Sprint(found), fmt.Sprint(wanted))
	}
	return nil
}

// Both tries that records are the same ones over gRPC: with their keys, headers and times, whatever compressed them.
func Both(c Client) {
	each := func(feature, kind string, try func(topic, codec string) error) {
		Report(feature, func() error {
			for _, codec := range codecs {
				topic := Topic(kind)
				if err := first(func() error { return c.NewTopic(topic, 1) }, func() error { return try(topic, codec) }); err != nil {
					return fmt.Errorf("%s: %w", codec, err)
				}
			}
			return nil
		})
	}
	each("written here, read over gRPC", "to-grpc", func(topic, codec string) error {
		if err := c.Write(topic, codec, records()); err != nil {
			return err
		}
		found, err := overGRPC(topic)
		if err != nil {
			return err
		}
		return sameRecords(found, records())
	})
	each("written over gRPC, read here", "from-grpc", func(topic, codec string) error {
		var lines strings.Builder
		for _, record := range records() {
			fmt.Fprintf(&lines, "%s:%s\n", record.Key, record.Value)
		}
		options := []string{"produce", topic, "--key-separator", ":", "--compression", codec}
		for _, header := range records()[0].Headers {
			options = append(options, "--header", header.Key+"="+header.Value)
		}
		if _, err := quipu(lines.String(), options...); err != nil {
			return err
		}
		found, err := c.Read(topic, count)
		if err != nil {
			return err
		}
		over, err := overGRPC(topic)
		if err != nil {
			return err
		}
		wanted := records()
		for i := range min(len(wanted), len(over)) {
			wanted[i].Timestamp = over[i].Timestamp
		}
		return first(func() error { return sameRecords(found, over) }, func() error { return sameRecords(found, wanted) })
	})
}
