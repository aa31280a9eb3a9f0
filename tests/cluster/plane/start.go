package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// How long one part may take until it answers. A cold start on a busy machine needs about ten
// seconds.
const patience = 2 * time.Minute

// start runs a plane in dir until a signal, the end of whoever holds the other end of stdin, or
// the death of a part. With an address it is a plane for nodes, which reach it there.
func start(dir string, address net.IP) error {
	plane, err := lay(dir, address)
	if err != nil {
		return err
	}
	ctx, end := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer end()
	endWithStdin(end)

	err = plane.run(ctx)
	plane.end()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// run starts the parts in the order in which they need each other, then does as it is told.
func (p *plane) run(ctx context.Context) error {
	for _, part := range []*part{p.etcd, p.api, p.controllers} {
		if err := p.bring(ctx, part); err != nil {
			return err
		}
	}
	words, err := listen(filepath.Join(p.dir, "control"))
	if err != nil {
		return err
	}
	defer words.close()

	kubeconfig := filepath.Join(p.dir, "admin.kubeconfig")
	fmt.Fprintf(os.Stderr, "try: KUBECONFIG=%s kubectl get namespaces\n", kubeconfig)
	fmt.Printf("kubeconfig %s\nready\n", kubeconfig)

	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case dead := <-p.deaths:
			if !dead.expected {
				return dead.failure("ended by itself")
			}
		case word := <-words.spoken:
			word.answer <- p.obey(ctx, word.text)
		}
	}
}

// obey takes the API server away and gives it back, at the same address and with the same data; or
// adds Tekton, from the folder that is named.
func (p *plane) obey(ctx context.Context, word string) error {
	if folder, ok := strings.CutPrefix(word, "start-tekton "); ok {
		return p.bringTekton(ctx, folder)
	}
	switch word {
	case "stop-api":
		// At once: clients see a broken connection, as when its machine goes away.
		p.api.kill()
		return nil
	case "start-api":
		if err := p.bring(ctx, p.api); err != nil {
			return err
		}
		// Those that were refused meanwhile would look again only after up to a minute.
		for _, part := range append([]*part{p.controllers}, p.tekton...) {
			if err := p.takeDown(part); err != nil {
				return err
			}
			if err := p.bring(ctx, part); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("unknown word %q: stop-api, start-api or start-tekton FOLDER", word)
}

// takeDown takes a part down, and its death off the books before somebody takes it for an accident.
func (p *plane) takeDown(part *part) error {
	if !part.running() {
		return nil
	}
	part.kill()
	for dead := range p.deaths {
		if dead == part {
			break
		}
		if !dead.expected {
			return dead.failure("ended by itself")
		}
	}
	return nil
}

// bring starts a part, unless it is running, and returns when it answers.
func (p *plane) bring(ctx context.Context, part *part) error {
	began := time.Now()
	if err := part.start(p.deaths); err != nil {
		return err
	}
	deadline := time.After(patience)
	for !part.answers(p) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-part.ended:
			return part.failure("ended before it answered")
		case <-deadline:
			return part.failure(fmt.Sprintf("does not answer after %v", patience))
		case <-time.After(50 * time.Millisecond):
		}
	}
	fmt.Fprintf(os.Stderr, "%s answers after %.1f s\n", part.name, time.Since(began).Seconds())
	return nil
}

// end takes the parts down, those first that lean on the others.
func (p *plane) end() {
	for _, part := range append(p.tekton, p.controllers, p.api, p.etcd) {
		part.kill()
	}
}

// endWithStdin ends the plane when stdin does, if stdin is something that a parent holds: its death
// is then ours. A terminal or /dev/null says nothing.
func endWithStdin(end func()) {
	about, err := os.Stdin.Stat()
	if err != nil || about.Mode()&(os.ModeNamedPipe|os.ModeSocket) == 0 {
		return
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		end()
	}()
}
