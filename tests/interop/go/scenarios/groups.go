// Package scenarios holds what members of a group see, whatever client they use.
package scenarios

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	partitions = 4
	settles    = 30 * time.Second
)

// Place is where a record was read.
type Place struct {
	Partition int32
	Offset    int64
}

// Member is a client in a group. Poll waits for a short while only.
type Member interface {
	Poll() ([]Place, error)
	Assigned() []int32
	Commit() error
	Close() error
}

// Options of a member: it is static where it has an instance; cooperative: it takes over partitions one by one; pattern: its topic is a
// pattern of names.
type Options struct {
	Instance    string
	Cooperative bool
	Pattern     bool
}

// Client is what the scenarios need of a client. ListAndDelete is given a group without members. Why there is no such thing is
// said in NoStatic, NoCooperative and NoPattern.
type Client struct {
	NewTopic      func(name string, partitions int) error
	Produce       func(topic string, values []string) error
	Sender        func(topic string) (Sender, error)
	Open          func(group, topic string, options Options) (Member, error)
	ListAndDelete func(group string) error
	Write         func(topic, codec string, records []Record) error
	Read          func(topic string, count int) ([]Record, error)
	NoStatic      string
	NoCooperative string
	NoPattern     string
}

var names int

// Topic is a name that no other run has.
func Topic(name string) string {
	names++
	return fmt.Sprintf("%s-%d-%d-%d", name, os.Getpid(), time.Now().UnixMilli(), names)
}

// Report tries a feature and says how it went.
func Report(feature string, run func() error) {
	if err := run(); err != nil {
		Say(feature, "fail", err.Error())
		return
	}
	Say(feature, "ok", "")
}

// Say tells what came of a feature.
func Say(feature, result, note string) {
	fmt.Printf("%s\t%s\t%.200s\n", feature, result, strings.Join(strings.Fields(note), " "))
}

// At work in a goroutine of its own.
type worker struct {
	lock     sync.Mutex
	records  []Place
	assigned []int32
	changes  int
	emptied  bool
	failure  error
	commits  bool
	ends     bool
	done     chan struct{}
}

func (c Client) start(group, topic string, options Options) *worker {
	w := &worker{done: make(chan struct{})}
	go func() {
		defer close(w.done)
		if err := w.run(c, group, topic, options); err != nil {
			w.lock.Lock()
			defer w.lock.Unlock()
			w.failure = err
		}
	}()
	return w
}

func (w *worker) run(c Client, group, topic string, options Options) error {
	member, err := c.Open(group, topic, options)
	if err != nil {
		return err
	}
	for {
		places, err := member.Poll()
		if err != nil {
			return err
		}
		assigned := slices.Clone(member.Assigned())
		slices.Sort(assigned)
		w.lock.Lock()
		w.records = append(w.records, places...)
		if !slices.Equal(assigned, w.assigned) {
			w.changes++
			w.emptied = w.emptied || len(assigned) == 0
			w.assigned = assigned
		}
		commits, ends := w.commits, w.ends
		w.lock.Unlock()
		if commits {
			if err := member.Commit(); err != nil {
				return err
			}
			w.lock.Lock()
			w.commits = false
			w.lock.Unlock()
		}
		if ends {
			return member.Close()
		}
	}
}

func (w *worker) commit() error {
	w.lock.Lock()
	w.commits = true
	w.lock.Unlock()
	return eventually("the offsets were not stored", func() bool { return !w.commits }, w)
}

func (w *worker) end() error {
	w.lock.Lock()
	w.ends = true
	w.lock.Unlock()
	select {
	case <-w.done:
	case <-time.After(settles):
		return fmt.Errorf("it does not end")
	}
	return w.failure
}

// Waits until a condition holds that looks at workers.
func eventually(what string, condition func() bool, workers ...*worker) error {
	for end := time.Now().Add(settles); ; time.Sleep(50 * time.Millisecond) {
		for _, w := range workers {
			w.lock.Lock()
		}
		holds := condition()
		var failure error
		for _, w := range workers {
			if w.failure != nil {
				failure = w.failure
			}
			w.lock.Unlock()
		}
		switch {
		case failure != nil:
			return failure
		case holds:
			return nil
		case time.Now().After(end):
			return fmt.Errorf("%s", what)
		}
	}
}

// How many partitions each has, where no two have the same.
func share(counts ...int) func(...*worker) bool {
	return func(workers ...*worker) bool {
		var all []int32
		for i, w := range workers {
			if len(w.assigned) != counts[i] {
				return false
			}
			all = append(all, w.assigned...)
		}
		slices.Sort(all)
		return len(slices.Compact(all)) == partitions
	}
}

func shared(workers ...*worker) error {
	counts := [][]int{{4}, {2, 2}}[len(workers)-1]
	return eventually("the partitions are not shared", func() bool { return share(counts...)(workers...) }, workers...)
}

func quipu(lines string, arguments ...string) ([]byte, error) {
	command := exec.Command(os.Getenv("QUIPU"), append(arguments, "--broker", os.Getenv("GRPC"))...)
	command.Stdin = strings.NewReader(lines)
	command.Stderr = os.Stderr
	return command.Output()
}

func first(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (c Client) scenario(feature string, run func(group, topic string) error) {
	Report(feature, func() error {
		topic, group := Topic("group"), Topic("g")
		if err := c.NewTopic(topic, partitions); err != nil {
			return err
		}
		return run(group, topic)
	})
}

// NewProtocol tries scenarios of members whose partitions the coordinator assigns.
func NewProtocol(c Client) {
	c.scenario("new group protocol: shares partitions", c.shares)
	c.scenario("new group protocol: commits and resumes", c.resumes)
	c.scenario("new group protocol: static member", c.static)
	Report("new group protocol: regex", c.byPattern)
}

// Groups tries all scenarios of the classic protocol.
func Groups(c Client) {
	c.scenario("group shares partitions", c.shares)
	c.scenario("group commits and resumes", c.resumes)
	if c.NoCooperative == "" {
		c.scenario("group, cooperative", c.takesOverOneByOne)
	} else {
		Say("group, cooperative", "skip", c.NoCooperative)
	}
	if c.NoStatic == "" {
		c.scenario("group, static member", c.static)
	} else {
		Say("group, static member", "skip", c.NoStatic)
	}
	if c.NoPattern == "" {
		Report("group, topics by pattern", c.byPattern)
	} else {
		Say("group, topics by pattern", "skip", c.NoPattern)
	}
	c.scenario("group seen by admin", c.seenByAdmin)
	c.scenario("group with gRPC", c.withGRPC)
}

func (c Client) shares(group, topic string) error {
	one := c.start(group, topic, Options{})
	if err := shared(one); err != nil {
		return err
	}
	two := c.start(group, topic, Options{})
	return first(
		func() error { return shared(one, two) },
		two.end,
		func() error { return shared(one) },
		one.end,
	)
}

func numbered(count int) []string {
	var values []string
	for i := range count {
		values = append(values, fmt.Sprint("value ", i))
	}
	return values
}

// Waits until so many records were read.
func reads(w *worker, count int) func() error {
	return func() error {
		return eventually("not all was read", func() bool { return len(w.records) >= count }, w)
	}
}

func (c Client) resumes(group, topic string) error {
	if err := c.Produce(topic, numbered(20)); err != nil {
		return err
	}
	one := c.start(group, topic, Options{})
	if err := first(reads(one, 20), one.commit, one.end); err != nil {
		return err
	}
	if err := c.Produce(topic, numbered(5)); err != nil {
		return err
	}
	two := c.start(group, topic, Options{})
	err := reads(two, 5)()
	time.Sleep(time.Second)
	if err := first(func() error { return err }, two.end); err != nil {
		return err
	}
	if len(two.records) != 5 {
		return fmt.Errorf("read %d records, 5 were new", len(two.records))
	}
	return nil
}

func (c Client) takesOverOneByOne(group, topic string) error {
	one := c.start(group, topic, Options{Cooperative: true})
	if err := shared(one); err != nil {
		return err
	}
	two := c.start(group, topic, Options{Cooperative: true})
	if err := shared(one, two); err != nil {
		return err
	}
	if one.emptied {
		return fmt.Errorf("it let go of all on the way")
	}
	return first(two.end, func() error { return shared(one) }, one.end)
}

func (c Client) byPattern() error {
	stem := Topic("stem")
	for topic, count := range map[string]int{stem + "-a": 5, stem + "-b": 7, Topic("other"): 3} {
		if err := first(func() error { return c.NewTopic(topic, 1) }, func() error { return c.Produce(topic, numbered(count)) }); err != nil {
			return err
		}
	}
	one := c.start(Topic("g"), "^"+stem+".*", Options{Pattern: true})
	err := reads(one, 12)()
	time.Sleep(time.Second)
	if err := first(func() error { return err }, one.end); err != nil {
		return err
	}
	if len(one.records) != 12 {
		return fmt.Errorf("read %d records, 12 match", len(one.records))
	}
	return nil
}

func (c Client) static(group, topic string) error {
	one, two := c.start(group, topic, Options{Instance: "one"}), c.start(group, topic, Options{Instance: "two"})
	if err := shared(one, two); err != nil {
		return err
	}
	changes := two.changes
	if err := one.end(); err != nil {
		return err
	}
	again := c.start(group, topic, Options{Instance: "one"})
	had := func() bool { return slices.Equal(again.assigned, one.assigned) }
	if err := eventually("it did not get what it had", had, again); err != nil {
		return err
	}
	time.Sleep(time.Second)
	if err := first(again.end, two.end); err != nil {
		return err
	}
	if two.changes != changes {
		return fmt.Errorf("the other member was given other partitions")
	}
	return nil
}

func (c Client) seenByAdmin(group, topic string) error {
	if err := c.Produce(topic, numbered(1)); err != nil {
		return err
	}
	one := c.start(group, topic, Options{})
	return first(reads(one, 1), one.commit, one.end, func() error { return c.ListAndDelete(group) })
}

func (c Client) withGRPC(group, topic string) error {
	if _, err := quipu(strings.Join(numbered(40), "\n")+"\n", "produce", topic); err != nil {
		return err
	}
	one := c.start(group, topic, Options{})
	if err := first(reads(one, 40), one.commit); err != nil {
		return err
	}
	shown, err := quipu("", "group", "describe", group, "--json")
	if err != nil {
		return err
	}
	var described struct {
		Members    []any
		Partitions []struct{ Offset, Lag int64 }
	}
	if err := json.Unmarshal(shown, &described); err != nil {
		return err
	}
	var read, lag int64
	for _, partition := range described.Partitions {
		read += partition.Offset
		lag += partition.Lag
	}
	if len(described.Members) != 1 || read != 40 || lag != 0 {
		return fmt.Errorf("%.150s", shown)
	}
	if err := one.end(); err != nil {
		return err
	}
	if _, err := quipu("", "group", "reset-offsets", group, "--topic", topic, "--to", "earliest"); err != nil {
		return err
	}
	again := c.start(group, topic, Options{})
	return first(reads(again, 40), again.end)
}
