package web

import (
	"context"
	"fmt"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// built is what `make assets` makes, made anew.
func built(t *testing.T) *assets {
	t.Helper()
	dir := t.TempDir()
	out, err := exec.CommandContext(t.Context(), "../../scripts/assets", dir).CombinedOutput()
	if err != nil {
		t.Fatalf("the assets cannot be bundled: %v\n%s", err, out)
	}
	a := loadAssets(os.DirFS(dir), ".")
	for name, hashed := range embeddedAssets().names {
		if a.names[name] == "" {
			a.names[name], a.files[hashed] = hashed, embeddedAssets().files[hashed]
		}
	}
	if a.names["plot.js"] == "" || a.names["plot.css"] == "" {
		t.Fatalf("bundled were %v", a.names)
	}
	return a
}

// chromium starts a headless browser that finds no host but this one.
func chromium(t *testing.T) context.Context {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath("chromium"), chromedp.NoSandbox, chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"), chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.WSURLReadTimeout(time.Minute))
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx, chromedp.Navigate("about:blank")); err != nil {
		t.Fatalf("chromium does not start: %v", err)
	}
	return ctx
}

// artefacts is the folder where tests leave pictures for people.
func artefacts(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("SUBLET_ARTEFACTS")
	if dir == "" {
		dir = filepath.Join(os.TempDir(), "sublet-artefacts") //nolint:usetesting // it outlives the test
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// watched is what a tab did that a page must not make it do.
type watched struct {
	mu     sync.Mutex
	faults []string
}

func (w *watched) add(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults = append(w.faults, fmt.Sprintf(format, args...))
}

// watch follows a tab: requests to others than host, and errors.
func watch(t *testing.T, tab context.Context, host string) *watched { //nolint:revive // the tab is no context of the call
	t.Helper()
	w := &watched{}
	err := chromedp.Listen(tab, func(event any) {
		switch e := event.(type) {
		case *network.EventRequestWillBeSent:
			if u, err := url.Parse(e.Request.URL); err != nil || u.Host != host && u.Scheme != "data" {
				w.add("a request to %s", e.Request.URL)
			}
		case *network.EventResponseReceived:
			if e.Response.Status >= 400 {
				w.add("%s answers %d", e.Response.URL, e.Response.Status)
			}
		case *runtime.EventExceptionThrown:
			w.add("an exception: %s", e.ExceptionDetails.Text)
		case *runtime.EventConsoleAPICalled:
			w.add("the console says %s: %v", e.Type, e.Args)
		case *log.EventEntryAdded:
			w.add("the log says %s: %s", e.Entry.Level, e.Entry.Text)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// measured is what a page says of itself.
type measured struct {
	Width  int      `json:"width"`  // of the document
	Inner  int      `json:"inner"`  // of the window
	Plots  []int    `json:"plots"`  // of each canvas, the pixels that are painted
	Drawn  []int    `json:"drawn"`  // of each drawing on the page, its height
	Ground string   `json:"ground"` // the colour behind all
	Lang   string   `json:"lang"`
	Heads  []string `json:"heads"`
	Text   string   `json:"text"`
}

const measure = `({
  width: document.documentElement.scrollWidth, inner: window.innerWidth,
  plots: [...document.querySelectorAll("canvas")].map(c => {
    const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
    let n = 0;
    for (let i = 3; i < d.length; i += 4) n += d[i] > 0;
    return n;
  }),
  drawn: [...document.querySelectorAll(".drawn")].map(s => Math.round(s.getBoundingClientRect().height)),
  ground: getComputedStyle(document.body).backgroundColor, lang: document.documentElement.lang,
  heads: [...document.querySelectorAll("h1, h2")].map(h => h.textContent), text: document.body.innerText,
})`

// TestBrowser looks at pages in a real Chromium: in both languages, light and
// dark, on a desk and on a phone, with scripts and without. Each is kept as a
// picture.
func TestBrowser(t *testing.T) {
	t.Parallel()
	h := newHost()
	s := newServer(t, h)
	s.assets = built(t)
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	browser, pictures := chromium(t), artefacts(t)
	t.Logf("pictures are in %s", pictures)
	for _, look := range []struct {
		name, path, lang, scheme string
		width                    int64
		scripts                  bool
		says                     string
	}{
		{"tenant-light-en", "bobs", "en", "light", 1280, true, "All servers"},
		{"tenant-dark-zh", "bobs", "zh-CN", "dark", 1280, true, "全部服务器"},
		{"tenant-phone-light-zh", "bobs", "zh-CN", "light", 360, true, "最近 24 小时"},
		{"tenant-phone-dark-en", "bobs", "en", "dark", 360, true, "Last 24 hours"},
		{"tenant-noscript", "bobs", "en", "light", 1280, false, "Last 12 months"},
		{"tenant-phone-noscript-dark", "bobs", "zh-CN", "dark", 360, false, "最近 12 个月"},
		{"guest-light-en", "bobs?guest=alice", "en", "light", 1280, true, "alice"},
		{"owner-dark-en", "owners", "en", "dark", 1280, true, "Whole host"},
		{"owner-phone-light-zh", "owners", "zh-CN", "light", 360, true, "整台主机"},
	} {
		t.Run(look.name, func(t *testing.T) {
			tab, cancel := chromedp.NewContext(browser)
			defer cancel()
			tab, stop := context.WithTimeout(tab, time.Minute)
			defer stop()
			seen := watch(t, tab, host)
			page, picture, err := visit(tab, server.URL+"/t/"+look.path, look.lang, look.scheme, look.width, look.scripts)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(pictures, "page-"+look.name+".png"), picture, 0o644); err != nil {
				t.Fatal(err)
			}
			checkLook(t, page, look.scheme, look.lang, look.scripts, look.says)
			for _, f := range seen.faults {
				t.Error(f)
			}
		})
	}
}

// visit opens a page as a reader of a language would, and tells what is there.
func visit(tab context.Context, address, lang, scheme string, width int64, scripts bool) (*measured, []byte, error) {
	_, err := chromedp.Call(tab, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: !scripts})
	if err != nil {
		return nil, nil, err
	}
	_, err = chromedp.Call(tab, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
	if err != nil {
		return nil, nil, err
	}
	_, err = chromedp.Call(tab, emulation.SetUserAgentOverride, emulation.SetUserAgentOverrideParams{UserAgent: "Mozilla/5.0 (a test)", AcceptLanguage: lang})
	if err != nil {
		return nil, nil, err
	}
	const tall, scale, quality = 800, 2, 100
	if err := chromedp.Do(tab, chromedp.EmulateViewport(width, tall, chromedp.EmulateScale(scale)), chromedp.Navigate(address)); err != nil {
		return nil, nil, err
	}
	page, err := chromedp.Run(tab, chromedp.Evaluate[*measured](measure))
	if err != nil {
		return nil, nil, err
	}
	picture, err := chromedp.Run(tab, chromedp.FullScreenshot(quality))
	return page, picture, err
}

func checkLook(t *testing.T, page *measured, scheme, lang string, scripts bool, says string) {
	t.Helper()
	if page.Width > page.Inner {
		t.Errorf("the page is %d wide in a window of %d: it has to be pushed about", page.Width, page.Inner)
	}
	want := 0
	if scripts {
		want = 3
	}
	if len(page.Plots) != want {
		t.Errorf("%d plots are drawn, want %d", len(page.Plots), want)
	}
	for i, painted := range page.Plots {
		if painted < 5000 {
			t.Errorf("plot %d has %d painted pixels", i, painted)
		}
	}
	for i, high := range page.Drawn {
		if seen := high > 100; seen == scripts {
			t.Errorf("drawing %d is %d high", i, high)
		}
	}
	ground := map[string]string{"light": "rgb(244, 245, 248)", "dark": "rgb(13, 16, 22)"}[scheme]
	if page.Ground != ground || page.Lang != lang {
		t.Errorf("the ground is %s, want %s; the language is %s, want %s", page.Ground, ground, page.Lang, lang)
	}
	if !strings.Contains(page.Text, says) || len(page.Heads) < 6 {
		t.Errorf("%q is not said under %q", says, page.Heads)
	}
}
