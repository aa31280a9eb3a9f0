package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// A part of the plane: a process of this binary, or of another one that was built beside it.
type part struct {
	name      string
	arguments []string
	// Empty: this binary, which takes the part's name as its first word.
	binary string
	// Beside HOME and PATH.
	environment []string
	// Where it says that it is there.
	health string
	// Its output, of all its runs.
	log string

	process *os.Process
	// Closed when the process is gone; nil as long as there was none.
	ended chan struct{}
	// It was told to end.
	expected bool
}

func newPart(dir, name, health string, arguments ...string) *part {
	return &part{
		name:      name,
		arguments: arguments,
		health:    health,
		log:       filepath.Join(dir, name+".log"),
	}
}

// start runs the process unless it is running, and tells deaths when it ends.
func (p *part) start(deaths chan<- *part) error {
	if p.running() {
		return nil
	}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	command, err := p.command()
	if err != nil {
		return err
	}
	command.Stdout, command.Stderr = log, log
	command.SysProcAttr = &syscall.SysProcAttr{
		// Ctrl-C is for us; the parts end in our order.
		Setpgid: true,
		// And whatever becomes of us, they do not stay.
		Pdeathsig: syscall.SIGKILL,
	}

	started, ended := make(chan error), make(chan struct{})
	go func() {
		// The signal of a parent's death comes when the thread dies that started the child.
		runtime.LockOSThread()
		err := command.Start()
		started <- err
		if err == nil {
			_ = command.Wait()
			close(ended)
			deaths <- p
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	p.process, p.ended, p.expected = command.Process, ended, false
	return nil
}

func (p *part) command() (*exec.Cmd, error) {
	binary, arguments := p.binary, p.arguments
	if binary == "" {
		own, err := os.Executable()
		if err != nil {
			return nil, err
		}
		binary, arguments = own, append([]string{p.name}, p.arguments...)
	}
	command := exec.Command(binary, arguments...)
	// Nothing of ours is for them: a proxy or an ETCD_ variable would change what is started.
	command.Env = append(p.environment, "HOME="+filepath.Dir(p.log), "PATH="+os.Getenv("PATH"))
	return command, nil
}

func (p *part) running() bool {
	if p.ended == nil {
		return false
	}
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// kill ends the process at once and returns when it is gone. Nothing is lost that a test would
// want back: what etcd has answered is in the kernel's hands.
func (p *part) kill() {
	if !p.running() {
		return
	}
	p.expected = true
	_ = p.process.Kill()
	<-p.ended
}

func (p *part) answers(plane *plane) bool {
	response, err := plane.client.Get(p.health)
	if err != nil {
		return false
	}
	_ = response.Body.Close()
	return response.StatusCode == 200
}

// failure says what happened, in the words of the process.
func (p *part) failure(what string) error {
	const last = 20
	text, _ := os.ReadFile(p.log)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	lines = lines[max(0, len(lines)-last):]
	return fmt.Errorf("%s %s; the end of %s:\n%s", p.name, what, p.log, strings.Join(lines, "\n"))
}
