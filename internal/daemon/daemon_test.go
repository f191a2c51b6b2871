package daemon

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"sublet/internal/api"
	"sublet/internal/desired"
	"sublet/internal/plan"
	"sublet/internal/reconcile"
	"sublet/internal/vps"
)

// TestEveryFieldArrives fills each field of the requests and looks for it in
// the spec: a field that is added and forgotten here is found.
func TestEveryFieldArrives(t *testing.T) {
	t.Parallel()
	samples := map[reflect.Type]any{}
	for _, sample := range []any{
		"new", false, vps.Bytes(77), vps.PowerStopped, vps.RestartNever, vps.Duration(77), netip.MustParseAddr("10.9.9.9"),
		vps.PortBlock{First: 7, Count: 7},
		7, vps.IsolationFast, vps.Mbit, netip.MustParsePrefix("fd00::7/128"),
		api.SetLimits{Packets: new(7)},
		api.SetResources{CPUQuota: new(7)},
		api.Expect{},
	} {
		samples[reflect.TypeOf(sample)] = sample
	}
	fill := func(request any) {
		v := reflect.ValueOf(request).Elem()
		for i := range v.NumField() {
			f := v.Field(i)
			if f.Kind() == reflect.Pointer {
				f.Set(reflect.New(f.Type().Elem()))
				f = f.Elem()
			}
			value, known := samples[f.Type()]
			if !known && f.Kind() == reflect.Slice {
				value = reflect.MakeSlice(f.Type(), 2, 2).Interface()
			} else if !known {
				t.Fatalf("%s: give a sample of its type", v.Type().Field(i).Name)
			}
			f.Set(reflect.ValueOf(value))
		}
	}
	check := func(name string, request any, before, after vps.GuestSpec, same ...string) {
		a, b := reflect.ValueOf(before), reflect.ValueOf(after)
		for f := range reflect.TypeOf(request).Elem().Fields() {
			field := f.Name
			if field == "Expect" {
				continue // it is compared, not kept
			}
			if field == "RootPasswordHash" {
				field = "RootPassword"
			}
			if !a.FieldByName(field).IsValid() {
				t.Errorf("%s.%s is no field of a spec", name, field)
			} else if reflect.DeepEqual(a.FieldByName(field).Interface(), b.FieldByName(field).Interface()) && !slices.Contains(same, field) {
				t.Errorf("%s.%s does not arrive", name, field)
			}
		}
	}
	spec := vps.NewGuestSpec("a")
	spec.NetworkPeer, spec.SMTP = true, true // as Autostart, so that false is a change
	var c api.CreateGuest
	fill(&c)
	check("CreateGuest", &c, spec, createSpec(spec, c), "Name")
	var u api.UpdateGuest
	fill(&u)
	check("UpdateGuest", &u, spec, updateSpec(spec, u))
	if diff := cmp.Diff(spec, updateSpec(spec, api.UpdateGuest{}), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
		t.Errorf("an empty update changes something:\n%s", diff)
	}
}

func TestListeners(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"tcp": `  sl  local_address rem_address   st tx_queue
   0: 00000000:0016 00000000:0000 0A 0
   1: 0100007F:1538 00000000:0000 0A 0
   2: 020010AC:01BB 010010AC:C350 01 0
`,
		"tcp6": `  sl  local_address                         remote_address                        st
   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A
   1: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 0A
   2: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A
`,
		"udp": `   sl  local_address rem_address   st
  10: 00000000:0035 00000000:0000 07
`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := listeners(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := []desired.Listener{{Port: 22, Protocol: vps.ProtoTCP}, {Port: 80, Protocol: vps.ProtoTCP}, {Port: 53, Protocol: vps.ProtoUDP}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("listeners (-want +got):\n%s", diff)
	}
	if _, err := listeners("/proc/net"); err != nil {
		t.Errorf("this machine's own sockets: %v", err)
	}
}

func TestLogTail(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "console.log")
	write := func(name, text string) {
		t.Helper()
		f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err == nil {
			_, err = f.WriteString(text)
		}
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	files := logFiles{dir: filepath.Dir(path), name: filepath.Base(path), old: 2}
	last := func(lines int) (string, logTail) {
		t.Helper()
		var out bytes.Buffer
		tail, err := files.last(lines, 0, &out)
		if err != nil {
			t.Errorf("the last %d lines: %v", lines, err)
		}
		return out.String(), tail
	}
	if text, _ := last(5); text != "" {
		t.Fatalf("without a log: %q", text)
	}
	write(path+".2", "zero\n")
	write(path+".1", "one\ntwo\n")
	write(path, "three\nfour")
	for lines, want := range map[int]string{
		0: "zero\none\ntwo\nthree\nfour", 1: "four", 2: "three\nfour", 3: "two\nthree\nfour", 4: "one\ntwo\nthree\nfour",
		5: "zero\none\ntwo\nthree\nfour", 9: "zero\none\ntwo\nthree\nfour",
	} {
		if text, _ := last(lines); text != want {
			t.Errorf("the last %d lines: %q; want %q", lines, text, want)
		}
	}
	_, tail := last(1)
	var out bytes.Buffer
	var err error
	write(path, " more")
	if tail, err = files.more(tail, &out); err != nil || out.String() != " more" {
		t.Errorf("what was added: %q, %v", out.String(), err)
	}
	// The log is rotated between two looks, with something added before.
	write(path, " old\n")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	write(path, "new\n")
	out.Reset()
	if _, err = files.more(tail, &out); err != nil || out.String() != " old\nnew\n" {
		t.Errorf("across a rotation: %q, %v", out.String(), err)
	}
	// Only so many bytes, in whole lines: "four more old", "new".
	for most, want := range map[int64]string{
		1: "", 3: "", 4: "new\n", 5: "new\n", 17: "new\n", 18: "four more old\nnew\n", 23: "four more old\nnew\n", 24: "three\nfour more old\nnew\n",
		28: "three\nfour more old\nnew\n", 29: "zero\nthree\nfour more old\nnew\n", 99: "zero\nthree\nfour more old\nnew\n",
	} {
		for lines, wanted := range map[int]string{0: want, 9: want, 1: want[strings.LastIndexByte(strings.TrimSuffix(want, "\n"), '\n')+1:]} {
			out.Reset()
			if _, err := files.last(lines, most, &out); err != nil || out.String() != wanted {
				t.Errorf("%d lines of the last %d bytes: %q, want %q (%v)", lines, most, out.String(), wanted, err)
			}
		}
	}
	// Lines that are longer than what is read at a time.
	long := strings.Repeat("x", 200<<10)
	write(path, long+"\n"+long+"\nend\n")
	for lines, want := range map[int]string{1: "end\n", 2: long + "\nend\n", 3: long + "\n" + long + "\nend\n"} {
		if text, _ := last(lines); text != want {
			t.Errorf("the last %d lines, which are long: %d bytes; want %d", lines, len(text), len(want))
		}
	}
}

// TestLogOfStrangers has a log that leads elsewhere, as one that an edge in
// strangers' hands wrote.
func TestLogOfStrangers(t *testing.T) {
	t.Parallel()
	dir, secret := t.TempDir(), filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, make := range map[string]func(path string) error{
		"a link":             func(path string) error { return os.Symlink(secret, path) },
		"a folder elsewhere": func(path string) error { return os.Symlink(filepath.Dir(secret), filepath.Dir(path)) },
		"a pipe":             func(path string) error { return unix.Mkfifo(path, 0o600) },
		"a folder":           func(path string) error { return os.Mkdir(path, 0o700) },
	} {
		files := logFiles{dir: filepath.Join(dir, name), name: "id/secret", old: 4}
		if err := os.MkdirAll(files.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if name != "a folder elsewhere" {
			if err := os.Mkdir(filepath.Join(files.dir, "id"), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if err := make(filepath.Join(files.dir, files.name)); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if _, err := files.last(0, 0, &out); err == nil || out.Len() > 0 {
			t.Errorf("%s is read: %q, %v", name, out.String(), err)
		}
	}
}

func TestOperations(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var o operations
		halfway := make(chan struct{})
		op := o.start(t.Context(), "image-build", "debian/12", func(_ context.Context, progress func(vps.Progress)) error {
			progress(vps.Progress{Phase: "unpack", Fraction: 0.5})
			<-halfway
			return vps.Errorf(vps.CodeDenied, "the disk is full")
		})
		synctest.Wait()
		if got, err := o.get(op.ID); err != nil || got.Done || got.Progress.Phase != "unpack" {
			t.Errorf("halfway: %+v, %v", got, err)
		}
		close(halfway)
		o.work.Wait()
		if got, err := o.get(op.ID); err != nil || !got.Done || got.Code != vps.CodeDenied || got.Error != "the disk is full" {
			t.Errorf("at the end: %+v, %v", got, err)
		}
		for range keptOperations {
			o.start(t.Context(), "x", "y", func(context.Context, func(vps.Progress)) error { return nil })
		}
		o.work.Wait()
		if _, err := o.get(op.ID); vps.ErrorCode(err) != vps.CodeNotFound {
			t.Errorf("an operation of long ago: %v; want it forgotten", err)
		}
	})
}

// TestReached goes through what a caller may wait for and find.
func TestReached(t *testing.T) {
	t.Parallel()
	at := func(state vps.State, change func(*vps.GuestStatus)) vps.GuestStatus {
		s := vps.GuestStatus{State: state}
		if change != nil {
			change(&s)
		}
		return s
	}
	exit := func(s *vps.GuestStatus) { s.Exit = &vps.Exit{Reason: vps.ExitPanic} }
	tests := map[string]struct {
		status vps.GuestStatus
		power  vps.Power
		steps  bool
		what   api.WaitFor
		there  bool
		code   vps.Code
	}{
		"runs":                          {at(vps.StateRunning, nil), vps.PowerRunning, false, api.WaitRunning, true, ""},
		"starts":                        {at(vps.StateStarting, nil), vps.PowerRunning, true, api.WaitRunning, false, ""},
		"is stopping before it starts":  {at(vps.StateStopping, nil), vps.PowerRunning, true, api.WaitSSH, false, ""},
		"failed":                        {at(vps.StateFailed, func(s *vps.GuestStatus) { s.Code = vps.CodeDenied }), vps.PowerRunning, true, api.WaitSSH, false, vps.CodeDenied},
		"was asked to be stopped":       {at(vps.StateStopped, nil), vps.PowerStopped, false, api.WaitRunning, false, vps.CodeConflict},
		"crashed, to be started again":  {at(vps.StateCrashed, func(s *vps.GuestStatus) { exit(s); s.NextTry = time.Now() }), vps.PowerRunning, true, api.WaitSSH, false, ""},
		"crashed for good":              {at(vps.StateCrashed, exit), vps.PowerRunning, false, api.WaitSSH, false, vps.CodeConflict},
		"crashed for good, and stopped": {at(vps.StateCrashed, exit), vps.PowerRunning, false, api.WaitStopped, true, ""},
		"stopped":                       {at(vps.StateStopped, nil), vps.PowerStopped, false, api.WaitStopped, true, ""},
		"is not deleted":                {at(vps.StateStopped, nil), vps.PowerStopped, false, api.WaitDeleted, false, ""},
		"nonsense":                      {at(vps.StateRunning, nil), vps.PowerRunning, false, "lunch", false, vps.CodeInvalid},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := vps.Guest{ID: "1", Spec: vps.NewGuestSpec("a")}
			g.Spec.Power = tt.power
			s := reconcile.Snapshot{Host: vps.Host{Guests: []vps.Guest{g}}, Status: map[string]vps.GuestStatus{"1": tt.status}}
			if tt.steps {
				s.Steps = []plan.Step{{Kind: plan.StartGuest, GuestID: "1"}}
			}
			there, err := reached(s, api.Guest{ID: "1", Spec: g.Spec}, tt.what)
			if there != tt.there || vps.ErrorCode(err) != tt.code {
				t.Errorf("got %v, %v; want %v, %q", there, err, tt.there, tt.code)
			}
		})
	}
	gone := reconcile.Snapshot{Status: map[string]vps.GuestStatus{}}
	if there, err := reached(gone, api.Guest{ID: "1"}, api.WaitDeleted); !there || err != nil {
		t.Errorf("a guest that is gone is not seen as deleted: %v, %v", there, err)
	}
	if _, err := reached(gone, api.Guest{ID: "1"}, api.WaitSSH); vps.ErrorCode(err) != vps.CodeNotFound {
		t.Errorf("waiting for SSH of a guest that is gone: %v", err)
	}
}

func TestSecondDaemonIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c, err := Config{StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run")}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := prepare(c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := prepare(c); vps.ErrorCode(err) != vps.CodeConflict {
		t.Errorf("a second daemon: %v; want a conflict", err)
	}
	unlock()
	if again, err := prepare(c); err != nil {
		t.Errorf("after the first one ended: %v", err)
	} else {
		again()
	}
}

func TestLogger(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	Config{LogJSON: true}.logger(&out).Info("hello", "guest", "a")
	if !strings.Contains(out.String(), `"msg":"hello","guest":"a"`) {
		t.Errorf("JSON logs say %s", out.String())
	}
	out.Reset()
	log := Config{}.logger(&out)
	log.Debug("quiet")
	log.Info("hello", slog.String("guest", "a"))
	if got := out.String(); !strings.Contains(got, "msg=hello guest=a") || strings.Contains(got, "quiet") {
		t.Errorf("plain logs say %s", got)
	}
}
