package scenarios

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// Sender produces values, with idempotence where the client can; it calls acked once the value is acknowledged. Close waits.
type Sender interface {
	Send(value string, acked func()) error
	Close() error
}

// At work, a value is produced so often.
const every = 5 * time.Millisecond

// One line at a time.
type teller struct {
	lock sync.Mutex
	out  *bufio.Writer
}

func (t *teller) say(line string) {
	t.lock.Lock()
	defer t.lock.Unlock()
	fmt.Fprintln(t.out, line)
	t.out.Flush()
}

// Work does `produce TOPIC` or `consume GROUP TOPIC` where the command line says so, for as long as standard input is open, while
// others kill nodes; false: it does not say so.
func Work(c Client) bool {
	if len(os.Args) < 2 {
		return false
	}
	ends := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(ends)
	}()
	tell := &teller{out: bufio.NewWriter(os.Stdout)}
	var err error
	if os.Args[1] == "produce" {
		err = c.produceUntil(ends, tell, os.Args[2])
	} else {
		err = c.consumeUntil(ends, tell, os.Args[2], os.Args[3])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return true
}

func ended(ends chan struct{}) bool {
	select {
	case <-ends:
		return true
	default:
		return false
	}
}

func (c Client) produceUntil(ends chan struct{}, tell *teller, topic string) error {
	sender, err := c.Sender(topic)
	if err != nil {
		return err
	}
	for number := 0; !ended(ends); number++ {
		acked := func() { tell.say(fmt.Sprint("acked ", number)) }
		if err := sender.Send(fmt.Sprint(number), acked); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		time.Sleep(every)
	}
	return sender.Close()
}

// What fails for now is tried again with the next records, as an application would.
func (c Client) consumeUntil(ends chan struct{}, tell *teller, group, topic string) error {
	member, err := c.Open(group, topic, Options{})
	if err != nil {
		return err
	}
	for !ended(ends) {
		places, err := member.Poll()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		for _, place := range places {
			tell.say(fmt.Sprintf("read %d %d", place.Partition, place.Offset))
		}
		if len(places) == 0 {
			continue
		}
		if err := member.Commit(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	return member.Close()
}
