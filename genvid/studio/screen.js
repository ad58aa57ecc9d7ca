// A screen plays the pictures of its blocks over a timeline of their tokens. All screens of the page share one clock.
class Clock {
  constructor() {
    this.screens = new Set();
    this.seconds = 0;
    this.playing = !matchMedia('(prefers-reduced-motion: reduce)').matches;
    let before = performance.now();
    const tick = now => {
      if (this.playing) this.seconds += (now - before) / 1000;
      before = now;
      const length = Math.max(0, ...[...this.screens].map(screen => screen.length));
      if (this.seconds >= length) this.seconds = 0;
      for (const screen of this.screens) screen.draw(this.seconds);
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }
  toggle() {
    this.playing = !this.playing;
    for (const button of document.querySelectorAll('.play')) button.textContent = this.playing ? 'Pause' : 'Play';
  }
}

class Screen {
  constructor(element, props, watch) {
    this.element = element;
    this.props = props;
    this.blocks = [];
    watch('value', () => this.update());
    clock.screens.add(this);
    this.update();
  }

  // Parts of the page are looked up each time: gradio may render its template again.
  part(name) { return this.element.querySelector(name); }
  get length() { return this.value ? this.value.frames / this.value.fps : 0; }

  update() {
    const value = this.props.value;
    if (!value || !value.blocks) return;
    if (this.value?.video !== value.video) {
      this.blocks = value.starts.map(start => ({start}));
    } else if (value.request < this.value.request) return;  // a late answer
    this.value = value;
    value.blocks.forEach((block, number) => {
      if (block && this.blocks[number].request !== value.request) this.load(number, block, value.request);
    });
    this.part('.facts').innerHTML = value.facts;
    this.layBars();
  }

  // The block is shown once its picture is decoded, and until then as it was.
  async load(number, block, request) {
    this.blocks[number].request = request;
    const image = new Image();
    image.src = block.picture;
    await image.decode();
    if (this.blocks[number]?.request !== request) return;
    Object.assign(this.blocks[number], {...block, image});
    this.setBar(number);
    const ready = this.blocks.filter(other => other.image && other.request === request).length;
    Object.assign(this.part('.screen').dataset, {request, ready});
  }

  layBars() {
    const bars = this.part('.bars');
    if (!bars || bars.children.length === this.blocks.length) return;
    bars.replaceChildren(...this.blocks.map(() => document.createElement('i')));
    this.blocks.forEach((_, number) => this.setBar(number));
    const seek = event => {
      if (!event.buttons) return;
      const box = bars.getBoundingClientRect();
      clock.seconds = Math.min(0.999, Math.max(0, (event.clientX - box.left) / box.width)) * this.length;
    };
    bars.onpointerdown = bars.onpointermove = seek;
  }

  setBar(number) {
    const bar = this.part('.bars')?.children[number], block = this.blocks[number];
    if (!bar || block.tokens === undefined) return;
    bar.style.setProperty('--part', block.tokens / this.value.capacity);
    bar.style.setProperty('--quality', Math.min(1, Math.max(0, (block.psnr - 10) / 30)));  // 10 to 40 dB
    bar.title = `block ${number + 1}: ${block.tokens} tokens, ${block.psnr.toFixed(2)} dB`;
  }

  draw(seconds) {
    const canvas = this.part('canvas');
    if (!this.value || !canvas) return;
    const frame = Math.min(this.value.frames - 1, Math.floor(seconds * this.value.fps));
    let number = this.blocks.findLastIndex(block => block.start <= frame);
    const block = this.blocks[number];
    if (!block?.image) return;
    const [width, height] = this.value.size;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, {width, height});
    canvas.getContext('2d').drawImage(block.image, 0, (frame - block.start) * height, width, height, 0, 0, width, height);
    this.part('.bars')?.style.setProperty('--now', `${100 * (frame + 0.5) / this.value.frames}%`);
  }
}

const clock = new Clock();
Object.assign(window, {clock, Screen});
document.addEventListener('click', event => { if (event.target.matches('.play, .screen canvas')) clock.toggle(); });
