// A browser that is told what to do in lines of JSON, {"do": ..., ...}, and answers each with a line: {"value": ...} or
// {"error": ...}. The folder with the packages is its argument.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

const require = createRequire(process.argv[2] + "/");
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const browser = await chromium.launch({
  executablePath: process.argv[3],
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});
const pages = new Map();
const said = [];

const deeds = {
  async open({ name, options }) {
    const context = await browser.newContext(options);
    const page = await context.newPage();
    page.setDefaultTimeout(20000);
    page.on("dialog", (dialog) => { said.push(`dialog: ${dialog.message()}`); dialog.dismiss(); });
    page.on("pageerror", (error) => said.push(`error: ${error.message}`));
    page.on("console", (message) => { if (message.type() === "error") said.push(`console: ${message.text()}`); });
    pages.set(name, page);
  },
  async tab({ name, beside }) {
    const page = await pages.get(beside).context().newPage();
    page.setDefaultTimeout(20000);
    pages.set(name, page);
  },
  goto: ({ page, url }) => page.goto(url).then((answer) => answer && answer.status()),
  fill: ({ page, at, text }) => page.fill(at, text),
  click: ({ page, at }) => page.click(at),
  press: ({ page, key }) => page.keyboard.press(key),
  text: ({ page, at }) => page.innerText(at),
  count: ({ page, at }) => page.locator(at).count(),
  wait: ({ page, at }) => page.waitForSelector(at).then(() => null),
  url: ({ page }) => page.url(),
  cookies: ({ page }) => page.context().cookies(),
  forget: ({ page }) => page.context().clearCookies(),
  run: ({ page, code }) => page.evaluate(code),
  shot: ({ page, path, full }) => page.screenshot({ path, fullPage: full }).then(() => null),
  said: () => said.splice(0),
  async axe({ page }) {
    const bypass = await page.context().newCDPSession(page);
    await bypass.send("Page.setBypassCSP", { enabled: true });
    await page.reload();
    await page.evaluate(axe);
    const found = await page.evaluate(() => window.axe.run());
    await bypass.send("Page.setBypassCSP", { enabled: false });
    return found.violations.map((each) => ({ id: each.id, impact: each.impact, at: each.nodes.map((node) => node.html) }));
  },
};

console.log(JSON.stringify({ value: "ready" }));
for await (const line of createInterface({ input: process.stdin })) {
  const asked = JSON.parse(line);
  try {
    const value = await deeds[asked.do]({ ...asked, page: pages.get(asked.page) });
    console.log(JSON.stringify({ value: value ?? null }));
  } catch (error) {
    console.log(JSON.stringify({ error: String(error) }));
  }
}
await browser.close();
