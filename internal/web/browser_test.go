package web

import (
	"context"
	"fmt"
	"maps"
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

	"sublet/internal/hang"
	"sublet/internal/vps"
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
		chromedp.WSURLReadTimeout(hang.After))
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
	// Cut are texts that do not fit where they are, Crossed labels of drawings that
	// lie over each other, Faint texts that hardly stand out from what is behind.
	Cut     []string `json:"cut"`
	Crossed []string `json:"crossed"`
	Faint   []string `json:"faint"`
}

const measure = `(() => {
  const seen = e => e.checkVisibility() && e.getBoundingClientRect().width > 1;
  const own = e => [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.textContent.trim()).join("");
  const texts = [...document.querySelectorAll("main *, header *, footer *")].filter(e => seen(e) && own(e) && !e.closest(".replaced, script"));
  const part = c => { const v = c.match(/[\d.]+/g).map(Number); return [v.slice(0, 3), v[3] ?? 1]; };
  const light = c => { const [r, g, b] = c.map(x => (x /= 255, x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4)); return .2126 * r + .7152 * g + .0722 * b; };
  const ground = e => { for (; e; e = e.parentElement) { const [c, a] = part(getComputedStyle(e).backgroundColor); if (a > .5) return c; } return [255, 255, 255]; };
  const contrast = e => { // WCAG 2, 1.4.3
    const s = getComputedStyle(e), a = light(part(e.closest("svg") ? s.fill : s.color)[0]), b = light(ground(e));
    return (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  };
  const labels = [...document.querySelectorAll(".drawn")].filter(seen).map(d => [...d.querySelectorAll("text")].filter(t => t.checkVisibility()));
  return {
  cut: texts.filter(e => !e.closest("svg") && e.clientWidth && e.scrollWidth > e.clientWidth + 1).map(e => e.tagName + " " + own(e)),
  crossed: labels.flatMap(list => list.filter((a, i) => list.some((b, j) => {
    if (j <= i) return false;
    const p = a.getBoundingClientRect(), q = b.getBoundingClientRect();
    return p.left < q.right && q.left < p.right && p.top < q.bottom && q.top < p.bottom;
  })).map(a => a.textContent)),
  faint: texts.filter(e => contrast(e) < 4.5).map(e => contrast(e).toFixed(1) + " " + e.tagName + " " + own(e)),
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
}})()`

// TestBrowser looks at pages in a real Chromium: in both languages, light and
// dark, on a desk and on a phone, with scripts and without. Each is kept as a
// picture.
func TestBrowser(t *testing.T) {
	t.Parallel()
	s := newServer(t, rentedHost())
	s.assets = built(t)
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	browser, pictures := chromium(t), artefacts(t)
	t.Logf("pictures are in %s", pictures)
	for _, look := range []struct {
		name, path, lang, scheme string
		width                    int64
		scale                    float64 // pixels of the screen in one of the page
		scripts                  bool
		says                     string
	}{
		{"tenant-light-en", "bobs", "en", "light", 1280, 1, true, "All servers"},
		{"tenant-dark-zh", "bobs", "zh-CN", "dark", 1280, 2, true, "全部服务器"},
		{"tenant-phone-light-zh", "bobs", "zh-CN", "light", 360, 3, true, "最近 24 小时"},
		{"tenant-phone-dark-en", "bobs", "en", "dark", 390, 3, true, "Last 24 hours"},
		{"tenant-noscript", "bobs", "en", "light", 1280, 1, false, "Last 12 months"},
		{"tenant-phone-noscript-dark", "bobs", "zh-CN", "dark", 360, 2, false, "最近 12 个月"},
		{"tenant-tablet-noscript", "bobs", "en", "light", 800, 1, false, "Last 12 months"},
		{"tenant-tablet-zh", "bobs", "zh-CN", "light", 800, 2, true, "最近 12 个月"},
		{"guest-light-en", "bobs?guest=alice", "en", "light", 1280, 2, true, "alice"},
		{"empty-phone-light-en", "daves", "en", "light", 390, 2, true, "No quota is set"},
		{"empty-dark-zh", "daves", "zh-CN", "dark", 1280, 1, true, "还没有服务器"},
		{"one-light-zh", "erins", "zh-CN", "light", 1280, 1, true, "本期限制已解除"},
		{"one-phone-dark-en", "erins", "en", "dark", 390, 3, true, "lifted until"},
		{"five-light-en", "franks", "en", "light", 1280, 2, true, "the network is off"},
		{"five-dark-zh", "franks", "zh-CN", "dark", 1280, 1, true, "服务器已停机"},
		{"five-phone-light-en", "franks", "en", "light", 390, 1, true, "no longer here"},
		{"five-phone-dark-zh", "franks", "zh-CN", "dark", 390, 3, true, "已移除"},
		{"owner-dark-en", "owners", "en", "dark", 1280, 2, true, "Whole host"},
		{"owner-phone-light-zh", "owners", "zh-CN", "light", 390, 2, true, "整台主机"},
	} {
		t.Run(look.name, func(t *testing.T) {
			tab, cancel := chromedp.NewContext(browser)
			defer cancel()
			tab, stop := context.WithTimeout(tab, hang.After)
			defer stop()
			seen := watch(t, tab, host)
			page, picture, err := visit(tab, server.URL+"/t/"+look.path, look.lang, look.scheme, look.width, look.scale, look.scripts)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(pictures, "page-"+look.name+".png"), picture, 0o644); err != nil {
				t.Fatal(err)
			}
			checkLook(t, page, look.scheme, look.lang, look.scripts, look.says)
			if look.path == "bobs" {
				checkPlots(t, page, look.scripts, look.scale)
			}
			for _, f := range seen.faults {
				t.Error(f)
			}
		})
	}
}

// checkPlots looks at the plots of a page with traffic.
func checkPlots(t *testing.T, page *measured, scripts bool, scale float64) {
	t.Helper()
	const painted = 3000 // by one dot for one
	for i, dots := range page.Plots {
		if float64(dots) < painted*scale*scale {
			t.Errorf("plot %d has %d painted pixels", i, dots)
		}
	}
	if scripts && len(page.Plots) == 0 {
		t.Error("nothing is plotted")
	}
}

// rentedHost is a host with tenants of all sorts: without guests and quotas,
// with one guest, and with five whose names are long.
func rentedHost() *host {
	h := newHost()
	maps.Copy(h.links, map[string]string{"daves": "dave", "erins": "erin", "franks": "frank-and-sons-of-the-long-names"})
	h.guests = append(h.guests, Guest{ID: "id-one", Name: "one", Tenant: "erin", State: vps.StateCrashed})
	lifted := h.use(vps.NewQuota(vps.QuotaTenant, "erin", "Asia/Shanghai"), 100*vps.GiB, 1.2)
	lifted.Quota.LiftedMonth = lifted.Quota.Month(now)
	h.uses = append(h.uses, lifted)

	frank := h.links["franks"]
	for i, state := range []vps.State{vps.StateRunning, vps.StateStopped, vps.StateFailed, vps.StateRescue, vps.StateDeleting} {
		name := fmt.Sprintf("guest-%d-%s", i, strings.Repeat("m", vps.MaxName-8))
		h.guests = append(h.guests, Guest{ID: "id-" + name, Name: name, Tenant: frank, State: state})
		use := h.use(vps.NewQuota(vps.QuotaGuest, name, "America/Argentina/Buenos_Aires"), vps.TiB, []float64{0.83, 1, 17.5, 0, 0.999}[i])
		use.Action = []vps.QuotaAction{"", vps.ActionSuspend, vps.ActionStop, "", ""}[i]
		if i == 4 {
			until := now.Add(26 * time.Hour)
			use.GraceUntil = &until
		}
		h.uses = append(h.uses, use)
	}
	h.gone = []Guest{{ID: "id-gone", Name: "gone-" + strings.Repeat("w", vps.MaxName-5), Tenant: frank}}
	tomorrow := vps.NewQuota(vps.QuotaTenant, frank, "Asia/Shanghai")
	tomorrow.ResetDay, tomorrow.Count = 25, vps.CountMax
	use := h.use(tomorrow, 1023*vps.GiB, 0.801)
	reached := now.Add(20 * time.Hour)
	use.ReachedAt = &reached
	h.uses = append(h.uses, use)
	return h
}

// visit opens a page as a reader of a language would, and tells what is there.
func visit(tab context.Context, address, lang, scheme string, width int64, scale float64, scripts bool) (*measured, []byte, error) {
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
	const tall, quality = 800, 100
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
	for what, texts := range map[string][]string{"cut off": page.Cut, "on top of each other": page.Crossed, "hard to read": page.Faint} {
		if len(texts) > 0 {
			t.Errorf("%s: %q", what, texts)
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
	if !strings.Contains(page.Text, says) || len(page.Heads) < 5 {
		t.Errorf("%q is not said under %q", says, page.Heads)
	}
}
