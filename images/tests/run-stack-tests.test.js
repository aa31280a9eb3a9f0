// run-stack-tests with the real newman, Playwright and Artillery, before an app and a proxy of Node's own.
//
//   npm ci --ignore-scripts && node --test
'use strict';

const assert = require('node:assert/strict');
const { execFile } = require('node:child_process');
const fs = require('node:fs');
const http = require('node:http');
const os = require('node:os');
const path = require('node:path');
const { test } = require('node:test');

const MODULES = path.join(__dirname, 'node_modules');
const SESSION = 'x-dev-session';

/** An app, and the admin port of the proxy before it, which counts the requests of pr-42. */
async function stage(t, { counts = true } = {}) {
  const seen = [];
  const app = http.createServer((request, response) => {
    seen.push(request);
    response.setHeader('content-type', 'application/json');
    response.statusCode = request.url.startsWith('/broken') ? 503 : 200;
    response.end(JSON.stringify({ session: request.headers[SESSION] ?? null }));
  });
  const counted = () => (counts ? seen.filter((request) => request.headers[SESSION] === 'pr-42').length : 7);
  const admin = http.createServer((_, response) => {
    response.end(JSON.stringify({ sessions: [{ name: 'pr-42', requests: counted() }] }));
  });
  for (const server of [app, admin]) {
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
    t.after(() => {
      server.close();
      server.closeAllConnections();
    });
  }
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'stack-tests-'));
  t.after(() => fs.rmSync(folder, { recursive: true }));
  return { seen, folder, url: `http://127.0.0.1:${app.address().port}`, admin: `127.0.0.1:${admin.address().port}` };
}

/** Runs the tests of one app, which declares these, and whose repository has these files. */
async function run({ folder, url, admin }, tests, files, more = {}) {
  const sources = path.join(folder, 'sources');
  fs.mkdirSync(path.join(sources, 'orders'), { recursive: true });
  for (const [name, text] of Object.entries(files)) {
    const file = path.join(sources, 'orders', name);
    fs.mkdirSync(path.dirname(file), { recursive: true });
    fs.writeFileSync(file, typeof text === 'string' ? text : JSON.stringify(text));
  }
  const proof = path.join(folder, 'report.json');
  fs.writeFileSync(proof, JSON.stringify({ apps: [{ app: 'orders', proxy_admin: admin }] }));
  const result = path.join(folder, 'result');
  const env = {
    ...process.env,
    PATH: `${path.join(MODULES, '.bin')}:${process.env.PATH}`,
    NODE_PATH: MODULES,
    HOME: folder,
    NO_COLOR: '1',
    ARTILLERY_DISABLE_TELEMETRY: 'true',
    STACK_JSON: JSON.stringify({ name: 'shop', apps: [{ name: 'orders', namespace: 'staging', 'service-port': 80, tests }] }),
    BUILD_APPS: 'orders',
    ENTRY_APP: 'orders',
    INTERCEPT_HEADER: `${SESSION}:pr-42`,
    APP_URL: url,
    PROOF: proof,
    SOURCES: sources,
    REPORTS: path.join(folder, 'reports'),
    RESULT: result,
    ...more,
  };
  const { code, output } = await new Promise((resolve) => {
    execFile(path.join(__dirname, 'run-stack-tests'), [], { env, maxBuffer: 1 << 26 }, (error, stdout, stderr) => {
      resolve({ code: error ? error.code : 0, output: stdout + stderr });
    });
  });
  const summary = fs.existsSync(result) ? JSON.parse(fs.readFileSync(result, 'utf8')) : undefined;
  return { code, output, summary };
}

const collection = (...requests) => ({
  info: { name: 'orders', schema: 'https://schema.getpostman.com/json/collection/v2.1.0/collection.json' },
  item: requests.map((request, at) => ({
    name: `request ${at}`,
    request,
    event: [{ listen: 'test', script: { exec: ["pm.test('ok', () => pm.response.to.have.status(200));"] } }],
  })),
});

test('every request of a Postman collection has the session, and nothing of its own is lost', async (t) => {
  const world = await stage(t);
  const own = collection('{{baseUrl}}/a', { method: 'POST', url: '{{baseUrl}}/b', header: [{ key: 'x-own', value: '1' }] });
  own.event = [{ listen: 'prerequest', script: { exec: ["pm.request.headers.add({ key: 'x-script', value: '2' });"] } }];

  const { code, output, summary } = await run(world, { postman: 'tests/orders.json' }, { 'tests/orders.json': own });

  assert.equal(code, 0, output);
  assert.deepEqual(summary, { orders: { postman: 'passed', 'session-requests': 2 } });
  assert.deepEqual(world.seen.map(({ url, headers }) => [url, headers[SESSION], headers['x-own'], headers['x-script']]), [
    ['/a', 'pr-42', undefined, '2'],
    ['/b', 'pr-42', '1', '2'],
  ]);
});

test('a failed assertion fails', async (t) => {
  const world = await stage(t);

  const { code, output, summary } = await run(world, { postman: 'orders.json' }, { 'orders.json': collection('{{baseUrl}}/broken') });

  assert.equal(code, 1, output);
  assert.equal(summary.orders.postman, 'failed');
});

test('tests that pass and that no proxy has seen fail', async (t) => {
  const world = await stage(t, { counts: false });

  const { code, output, summary } = await run(world, { postman: 'orders.json' }, { 'orders.json': collection('{{baseUrl}}/a') });

  assert.equal(code, 1, output);
  assert.deepEqual(summary, { orders: { postman: 'passed', 'session-requests': 0 } });
  assert.match(output, /what was tested is the baseline/);
});

test('a proxy that cannot be asked fails', async (t) => {
  const world = await stage(t);

  const { code, output } = await run({ ...world, admin: '127.0.0.1:9' }, { postman: 'orders.json' }, { 'orders.json': collection('{{baseUrl}}/a') });

  assert.equal(code, 1, output);
  assert.match(output, /the proxy of orders at 127\.0\.0\.1:9 cannot be asked/);
});

test('what is declared and not there is told, and fails where tests are required', async (t) => {
  const world = await stage(t);
  const outside = { postman: '../../report.json', artillery: 'load.yml' };

  const told = await run(world, outside, {});
  assert.equal(told.code, 0, told.output);
  assert.deepEqual(told.summary, { orders: { postman: 'missing', artillery: 'missing' } });

  const required = await run(world, outside, {}, { REQUIRE_TESTS: 'true' });
  assert.equal(required.code, 1, required.output);
  assert.match(required.output, /orders: artillery: declared and not there/);
});

test('an app without tests is told, and fails where tests are required', async (t) => {
  const world = await stage(t);

  const told = await run(world, {}, {});
  assert.equal(told.code, 0, told.output);
  assert.match(told.output, /orders declares no tests/);

  const required = await run(world, {}, {}, { REQUIRE_TESTS: 'true' });
  assert.equal(required.code, 1, required.output);
});

test('what makes no sense is wrong usage', async (t) => {
  const world = await stage(t);
  for (const more of [{ INTERCEPT_HEADER: 'pr-42' }, { TEST_APPS: '$(id)' }, { REQUIRE_TESTS: 'perhaps' }]) {
    const { code, output } = await run(world, {}, {}, more);
    assert.equal(code, 2, output);
  }
});

test('every request of an Artillery script has the session, beside headers of its own', async (t) => {
  for (const place of ['', 'http: ']) {
    const world = await stage(t);
    const config = `{ target: "http://127.0.0.1:9", phases: [{ duration: 1, arrivalCount: 2 }], ${place}${place && '{ '}defaults: { headers: { x-own: "1" } }${place && ' }'} }`;
    const script = `config: ${config}\nscenarios: [{ flow: [{ get: { url: "/a" } }] }]\n`;

    const { code, output, summary } = await run(world, { artillery: 'load.yml' }, { 'load.yml': script });

    assert.equal(code, 0, output);
    assert.deepEqual(summary, { orders: { artillery: 'passed', 'session-requests': 2 } });
    assert.deepEqual(world.seen.map(({ headers }) => [headers[SESSION], headers['x-own']]), [['pr-42', '1'], ['pr-42', '1']]);
  }
});

test('an Artillery script of which every request fails has failed', async (t) => {
  const world = await stage(t);
  const script = 'config: { target: "x", phases: [{ duration: 1, arrivalCount: 1 }] }\nscenarios: [{ flow: [{ get: { url: "/broken" } }] }]\n';

  const { code, output, summary } = await run(world, { artillery: 'load.yml' }, { 'load.yml': script });

  assert.equal(code, 1, output);
  assert.equal(summary.orders.artillery, 'failed');
});

const SPEC = `
import { test, expect } from '@playwright/test';
test('orders', async ({ request }) => {
  expect((await request.get('/a')).ok()).toBeTruthy();
  expect(process.env.SESSION_HEADER_NAME + ':' + process.env.SESSION_HEADER_VALUE).toBe('x-dev-session:pr-42');
});
`;

test('every request of Playwright tests has the session, with and without a configuration of the app', async (t) => {
  const own = `import { defineConfig } from '@playwright/test';
export default defineConfig({ testDir: './specs', use: { extraHTTPHeaders: { 'x-own': '1' }, baseURL: 'http://127.0.0.1:9' },
  webServer: { command: 'false', url: 'http://127.0.0.1:9' }, projects: [{ name: 'one' }, { name: 'two', use: { extraHTTPHeaders: { 'x-own': '2' } } }] });`;
  for (const [files, expected] of [
    [{ 'e2e/orders.spec.ts': SPEC }, [['pr-42', undefined]]],
    [{ 'e2e/playwright.config.ts': own, 'e2e/specs/orders.spec.ts': SPEC }, [['pr-42', '1'], ['pr-42', '2']]],
    [{ 'package.json': '{"type":"module"}', 'playwright.config.ts': own.replace('./specs', '.'), 'e2e/orders.spec.ts': SPEC, 'other.spec.ts': 'throw 1;' }, [['pr-42', '1'], ['pr-42', '2']]],
  ]) {
    const world = await stage(t);

    const { code, output, summary } = await run(world, { playwright: 'e2e' }, files);

    assert.equal(code, 0, output);
    assert.deepEqual(summary, { orders: { playwright: 'passed', 'session-requests': expected.length } });
    assert.deepEqual(world.seen.map(({ headers }) => [headers[SESSION], headers['x-own']]).sort(), expected);
  }
});

test('a folder without a Playwright test has failed', async (t) => {
  const world = await stage(t);

  const { code, output, summary } = await run(world, { playwright: 'e2e' }, { 'e2e/readme.txt': 'nothing' });

  assert.equal(code, 1, output);
  assert.equal(summary.orders.playwright, 'failed');
});
