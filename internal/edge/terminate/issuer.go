package terminate

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
	"golang.org/x/time/rate"

	"sublet/internal/edge"
	"sublet/internal/vps"
)

// issuer gets certificates from one authority. It does what certmagic's own
// ACMEIssuer does, without that one's servers: those would open ports 80 and 443
// where they could, and are one set for the whole program.
type issuer struct {
	acme    edge.ACME
	key     string
	storage certmagic.Storage
	client  *http.Client
	dns     *dnsSolver
	pace    *rate.Limiter
	log     *slog.Logger
}

// Orders go out in bursts of at most orderBurst, and one a second: a host that
// gets a thousand domains at once does not run into the authority's limits.
const orderBurst = 10

func newIssuer(a edge.ACME, s certmagic.Storage, log *slog.Logger) *issuer {
	i := &issuer{acme: a, storage: s, log: log, key: folderOf(a.Authority()), pace: rate.NewLimiter(1, orderBurst)}
	if a.DNSServer != "" {
		i.dns = newDNSSolver(a, log)
	}
	var roots *x509.CertPool // nil: the system's
	if a.Roots != "" {
		roots = x509.NewCertPool()
		roots.AppendCertsFromPEM([]byte(a.Roots)) // Load saw to it that there are some
	}
	i.client = &http.Client{
		Timeout: time.Minute,
		Transport: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: 15 * time.Second}).DialContext,
			TLSClientConfig:       &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:   15 * time.Second,
			ResponseHeaderTimeout: 30 * time.Second,
			IdleConnTimeout:       time.Minute,
			ForceAttemptHTTP2:     true,
		},
	}
	return i
}

// folderOf names the folder of what came from a directory.
func folderOf(directory string) string {
	if u, err := url.Parse(directory); err == nil && u.Host != "" {
		directory = u.Host + strings.TrimRight(u.Path, "/")
	}
	return certmagic.StorageKeys.Safe(strings.ReplaceAll(directory, "/", "-"))
}

// IssuerKey implements certmagic.Issuer: certificates of each authority are in a
// folder of their own.
func (i *issuer) IssuerKey() string { return i.key }

// GetRenewalInfo implements certmagic.RenewalInfoGetter (ARI, RFC 9773).
func (i *issuer) GetRenewalInfo(ctx context.Context, cert certmagic.Certificate) (acme.RenewalInfo, error) {
	return i.acmeClient().GetRenewalInfo(ctx, cert.Leaf)
}

// Issue implements certmagic.Issuer.
func (i *issuer) Issue(ctx context.Context, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	if i.acme.Fault != "" {
		return nil, vps.Errorf(vps.CodeInvalid, "%s", i.acme.Fault)
	}
	if err := i.pace.Wait(ctx); err != nil {
		return nil, err
	}
	chains, err := i.order(ctx, csr)
	if p, ok := errors.AsType[acme.Problem](err); ok && p.Type == acme.ProblemTypeAccountDoesNotExist {
		// The authority forgot us, as private ones do that were set up anew.
		if err := i.forgetAccount(ctx); err != nil {
			return nil, err
		}
		chains, err = i.order(ctx, csr)
	}
	if err != nil {
		return nil, err
	}
	if len(chains) == 0 {
		return nil, errors.New("the authority sent no certificate")
	}
	return &certmagic.IssuedCertificate{Certificate: chains[0].ChainPEM, Metadata: chains[0]}, nil
}

func (i *issuer) order(ctx context.Context, csr *x509.CertificateRequest) ([]acme.Certificate, error) {
	client := acmez.Client{Client: i.acmeClient()}
	account, err := i.account(ctx, client.Client)
	if err != nil {
		return nil, err
	}
	params, err := acmez.OrderParametersFromCSR(account, csr)
	if err != nil {
		return nil, err
	}
	if len(csr.DNSNames) == 1 && strings.HasPrefix(csr.DNSNames[0], "*.") {
		if i.dns == nil {
			return nil, vps.Errorf(vps.CodeInvalid, "certificates for suffixes such as %s need a DNS server that takes updates; set one (see docs/domains.md)", csr.DNSNames[0])
		}
		client.ChallengeSolvers = map[string]acmez.Solver{acme.ChallengeTypeDNS01: i.dns}
	} else {
		s := stored{i.storage}
		client.ChallengeSolvers = map[string]acmez.Solver{acme.ChallengeTypeHTTP01: s, acme.ChallengeTypeTLSALPN01: s}
	}
	if len(csr.DNSNames) == 1 {
		params.Replaces = i.current(ctx, csr.DNSNames[0])
	}
	return client.ObtainCertificate(ctx, params)
}

// current returns the certificate that a new one is to replace, nil for none:
// authorities count renewals apart (RFC 9773, 5).
func (i *issuer) current(ctx context.Context, name string) *x509.Certificate {
	b, err := i.storage.Load(ctx, certmagic.StorageKeys.SiteCert(i.key, name))
	if err != nil {
		return nil
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil || len(cert.AuthorityKeyId) == 0 {
		return nil
	}
	return cert
}

func (i *issuer) acmeClient() *acme.Client {
	return &acme.Client{Directory: i.acme.Authority(), HTTPClient: i.client, UserAgent: "sublet", PollTimeout: 2 * time.Minute, Logger: slog.New(quiet{i.log.Handler()})}
}

// account returns the account at the authority, and makes it when there is none.
func (i *issuer) account(ctx context.Context, client *acme.Client) (acme.Account, error) {
	if a, err := i.loadAccount(ctx); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return a, err
	}
	// One process makes it.
	const lock = "acme_account"
	if err := i.storage.Lock(ctx, lock); err != nil {
		return acme.Account{}, err
	}
	defer func() { _ = i.storage.Unlock(context.WithoutCancel(ctx), lock) }()
	if a, err := i.loadAccount(ctx); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return a, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return acme.Account{}, err
	}
	a := acme.Account{PrivateKey: key, TermsOfServiceAgreed: i.acme.AgreeTerms}
	if i.acme.Email != "" {
		a.Contact = []string{"mailto:" + i.acme.Email}
	}
	if i.acme.EABKeyID != "" {
		// Some authorities pad what RFC 8555 has without padding.
		eab := acme.EAB{KeyID: i.acme.EABKeyID, MACKey: strings.TrimRight(i.acme.EABKey, "=")}
		if err := a.SetExternalAccountBinding(ctx, client, eab); err != nil {
			return a, err
		}
	}
	if a, err = client.NewAccount(ctx, a); err != nil {
		return a, err
	}
	i.log.InfoContext(ctx, "an account was made at the certificate authority", "authority", i.acme.Authority(), "account", a.Location)
	return a, i.saveAccount(ctx, a)
}

// accountKey is the folder of the account: one for each authority, address and
// key that it is bound to.
func (i *issuer) accountKey(file string) string {
	sum := sha256.Sum256([]byte(i.acme.Email + "\x00" + i.acme.EABKeyID))
	return "accounts/" + i.key + "/" + hex.EncodeToString(sum[:8]) + "/" + file
}

func (i *issuer) loadAccount(ctx context.Context) (a acme.Account, err error) {
	text, err := i.storage.Load(ctx, i.accountKey("account.json"))
	if err != nil {
		return a, err
	}
	if err := json.Unmarshal(text, &a); err != nil {
		return a, err
	}
	key, err := i.storage.Load(ctx, i.accountKey("key.pem"))
	if err != nil {
		return a, err
	}
	a.PrivateKey, err = certmagic.PEMDecodePrivateKey(key)
	return a, err
}

// saveAccount writes the key first: an account counts as there by its other file.
func (i *issuer) saveAccount(ctx context.Context, a acme.Account) error {
	key, err := certmagic.PEMEncodePrivateKey(a.PrivateKey)
	if err != nil {
		return err
	}
	if err := i.storage.Store(ctx, i.accountKey("key.pem"), key); err != nil {
		return err
	}
	text, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return i.storage.Store(ctx, i.accountKey("account.json"), text)
}

func (i *issuer) forgetAccount(ctx context.Context) error {
	return i.storage.Delete(ctx, i.accountKey("account.json"))
}
