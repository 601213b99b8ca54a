"""The rules that recognize personal data in Chinese and English texts: names, numbers, dates, hospitals, addresses.

In: a text. Out: `rules`, all patterns in the order in which `qilin.text.deidentify` removes what they match; and
`find_personal_data`, the types of those that are certain enough to reject a whole sample. The others also match what is
personal in a report of one patient only: a year, a time, the name of a hospital. Patterns match the usual notations;
they do not replace human review or de-identification at the source of the data.

Every repetition in a pattern is bounded or cannot be divided in two ways, so the time is linear in the text's length.
"""

import re
from collections.abc import Iterable
from functools import cache

# --- names ---

HAN = r"[\u4e00-\u9fff]"
# the most frequent ones, which suffice to reject a whole sample; the others too are removed from a report
_COMMON_SURNAMES = (
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林罗郑梁谢宋唐许韩冯邓曹彭曾萧田董袁潘于蒋蔡余杜叶程苏魏吕丁任沈姚卢姜崔钟谭"
    "陆汪范石廖贾夏韦付方白邹孟熊秦邱江尹薛闫段雷侯龙史陶黎贺顾毛郝龚邵万钱严覃武戴莫孔向汤"
)
_SURNAMES = _COMMON_SURNAMES + (
    "肖傅丘阎温康施文牛樊葛邢安齐易乔伍庞颜倪庄聂章鲁岳翟殷詹申欧耿关兰焦俞左柳甘祝包宁尚符舒阮柯纪梅童凌毕单季裴霍涂"
    "成苗谷盛曲翁冉骆蓝路游辛靳管柴蒙鲍华喻祁蒲房滕屈饶解牟艾尤阳时穆农司卓古吉缪简车项连芦麦褚娄窦戚岑景党宫费卜冷晏"
    "席卫米柏宗瞿桂全佟应臧闵苟邬边卞姬师和仇栾隋商刁沙荣巫寇桑郎甄丛仲虞敖巩明佘池查麻苑迟邝官封谈匡鞠惠荆乐冀郁胥南"
    "班储原栗燕楚鄢劳谌奚皮粟冼蔺楼盘满闻位厉伊仝百计宣金木水花云平常诸"
)
_COMPOUND = (
    "欧阳|司马|上官|诸葛|东方|皇甫|尉迟|公孙|慕容|令狐|长孙|宇文|司徒|夏侯|轩辕|端木|南宫|独孤|呼延|闻人|百里|申屠"
)
# ordinary words that start with the character of a surname: its second characters
_ORDINARY = (
    "高[密血热度级位信回代脂危龄龋分强年渗张凝尿钙糖压频流低处温耸]|黄[韧疸斑体色染绿白骨疣褐]|白[质细色蛋带血内塞线斑癜苔膜天喉念化]|马[尾蹄上方赛鞍氏来铃松]|胡[须萝氏]|方[叶形向可法案便式肌能才面]"
    "|石[灰棉骨膏蜡样英斛]|金[属黄标葡字水氏]|牛[角眼皮奶肉津]|毛[玻刺细糙发囊面霉状氏]|文[氏献]|雷[诺公米氏]|关[节闭系于注键心]|包[膜块绕埋裹括虫含涵皮氏茎]|安[静全氏置装排慰宫抚]"
    "|平[扫滑卧静素时坦片均面直行稳躺常日整衡台躺足]|明[显确亮暗白]|常[规见染有于伴年因用需常在被]|成[骨像人年角熟形团串立分功]|车[祸]|水[肿平样疱囊电溶剂母泡痘]|花[环斑生边样]|时[相间有而长钟根在停常告候]|连[续枷接合同]"
    "|路[径过]|柳[叶氏]|鱼[骨鳞肉]|谷[氨丙草胱]|云[雾絮翳南]|龙[骨胆]|段[性]|沙[粒眼样土拉利漠]|万[一古氏]|易[怒疲醒饥位激复发感于与出误致混见]|康[复氏]|严[重格密]|贝[尔壳伐]|蓝[痣染色斑白]"
    "|梅[花毒尼克]|席[纹汉]|管[腔状壁径床周道理样路型饲]|单[发侧纯肾肺个核房克位次胎活支一光层向独药用枚]|全[身部程肺脑腹心结层景血天麻周胃切组主]|宫[颈腔体内底旁缩外角高]|房[间室颤水性扑缺早角]|边[缘界]"
    "|周[围边径期前后身]|任[何意氏]|苏[醒木丹]|温[度氏水热]|曲[度张线折霉妥面菌]|原[因发位有始来先片诊则病形切手引田醛]|查[体看见加对房因出明]|麻[醉木痹疹风烦]|项[韧目背部]|计[划算数量分]|商[陆量讨]"
    "|封[闭堵口]|古[典老]|符[合]|顾[虑及]|施[万行莫他术普加]|章[节鱼]|纪[录]|孔[径源洞氏隙]|尹[形]|童[年样]|冷[结刀冻汗热水凝敷感]|阳[性]|阴[性]|华[法支]|甘[露油氨草]"
    "|许[多可莫氏]|丘[脑疹]|葛[根]|费[用力]|钟[情乳样摆]|何[时处种首杰氏奇]|孟[氏鲁]|贺[氏]|夏[科季天]|汤[氏汁姆]|罗[道氏音非库]|唐[氏草]|鲁[氏]|孙[氏]|戴[维入有镜]"
    "|艾[森迪滋叶灸氏]|霍[纳奇乱氏尔]|林[奇氏可]|贾[第]|谈[话]|武[器]|杜[氏仲]|柯[莱萨氏兴]|史[密氏诉]|钱[币氏]|谢[绝谢]|尚[可未清好需有能存无在规光均见平保完连对]|程[度序氏]"
    "|叶[间尖状酸段切]|陶[瓷氏土]|游[离走泳动]|江[米豚]|邱[氏]|齐[整全柏平]|宁[心静]|焦[虑点痂油]|舒[张适展缓]|凌[晨乱]|毕[罗竟业氏]|季[节度肋胁]|鲍[曼恩氏]"
    "|曾[建行有于在因患诊服做用出被经手外接多反住就来到发一自高两三数化放复检查见示诉以感受怀生流口咯晕两]|解[剖除大小黑离热痉稀便毒释惑答决]|屈[曲光膝髋]|颜[面色]|尤[其以文]|诸[症多如]|强[化迫直烈]|骆[驼]|甲[状]"
    "|支[气]|桑[葚叶]|司[美琼机]|卫[生星]|党[参]|官[能]|宣[教]|莫[氏名顿西]|米[粒非氏醋]|卢[戈格氏]|魏[格氏]|郎[格罕飞]|川[崎]|桥[本]|库[欣]|布[加]|海[马绵]|韦[格氏]"
    "|伍[德氏]|乐[观]|麦[粒氏角冬]|印[戒象]|甄[别]|盘[曲状旁腔源]|满[意足月]|木[僵村]|位[于置]|百[分日]|南[北]|皮[肤下质疹瘤层牵髓炎损脂肌]|班[氏]|储[存备尿血]|楼[梯]|景[深象]|惠[普]"
    "|粟[粒]|燕[尾麦]|闻[及]|贲[门]|付[费]|窦[性道房口腔]|怀[孕疑]|束[状支]|苗[勒条]|蒙[脱古]|伊[马立曲]|丁[胺丙]|丛[状]|巩[膜固]|容[积]"
    "|应[理该当]|祝[您你]|平[让]|和[心]"
    "|高安动|胡桃夹|申请|全[体科]|本人|张力|吉兰"
)
# characters of most given names; without a boundary after a name only these are taken
_FORENAME = (
    "伟民秀兰芳小建华明玉梅淑贞国强丽大勇爱志春燕美玲金宝天宇琳晓子涵翠英长山远立新倩凯飞平超然红东文静丽娟婷磊洋珍超刚慧振杰涛霞"
    "辉军敏俊鹏艳波斌宁峰健欣雪莹佳雨婷浩博轩梓涵思怡嘉琪瑞晨阳昊泽诗涵萱依娜莉莲桂香凤云福祥贵荣德庆生永海洪胜利根林森鑫富财旺"
    "义礼智忠孝仁良善培兴业卫党跃进援朝抗美解放学工农亮武彬彦颖楠丹璐雯蕾薇菲萍琴瑶瑾璇琼莎菊芬芝芸茜荷莺蓉蓓蔚薛馨毅朋松柏"
    "栋梁楷榕彪魁雄威猛龙虎豹麒麟骏骥鸿鹤鹰凌霄星辰昭昕晖晟景晴煜炜炎烁灿焕熙耀凡川江河清润泉源沛泓浚淳深涌滨潇澜瀚珊珠琦琨琰"
    "璋瑜瑄璞岩岚峻嵘崇巍亚京冬冰典力功勋勤千升卓南友君启哲唯喜坚城培士壮夏奇姗姝娇娅婉婧媛嫣安宏宗宪家容宽寿尚"
    "尧少巧帆帅常平广庭康延弘弛彤循心怀恒恩悦惠愉成才扬承捷政敬斯方旭时昌昱显普曼望杨枫柔柳树桃梦楚欢正毓民汉沁治泰洁浦海"
    "润渊湘源溪满漫炳烨燕献玫珂珍珏理琛田男畅白百益盈盛睿知石祖祯禄福秋秦程穗立竹笑筠米红纯绍经维绮绪缘罡群翔翰耘聪肖舒"
    "航舟良艺艾花苏若茂茗草莘营蓝虹融裕西诚谊谦谨豪贤贺赞轶辛辰达迅迪逸郁采野钊钢钧铁铃铭锋锐锦键镇闻阔陆陶隆雅"
    "雷震霖露青靖顺韬韵颂颜风飘驰骁高魏鲁黎齐犇洁松仪仲任伊伦佑作俐修倚健傲儒元兆先光克冠冲凤"
)
_S = f"[{_SURNAMES}]"
# prepositions and 史, 余, 左: a surname only before a usual given name that ends there
_PARTICLE = rf"[于余左史向和应](?![{_FORENAME}]{{1,2}}(?:(?!{HAN})|先生|女士|医|主任|教授|护士|技师))"
# _FULL where a boundary or a title follows, _USUAL where anything may follow
_FULL = rf"(?!{_ORDINARY}|{_PARTICLE})(?:(?:{_COMPOUND}){HAN}{{1,2}}|{_S}{HAN}{{1,2}})"
_USUAL = rf"(?!{_ORDINARY}|{_PARTICLE})(?:{_COMPOUND}|{_S})[{_FORENAME}]{{1,2}}"
_DOTTED = rf"{HAN}{{2,6}}[·•・]{HAN}{{1,8}}"
_LATIN = r"[A-Z][a-z]+(?:[ -][A-Z][a-z]+){0,2}"
_PINYIN = (
    r"(?:Wang|Li|Zhang|Liu|Chen|Yang|Huang|Zhao|Wu|Zhou|Xu|Sun|Ma|Zhu|Hu|Guo|He|Gao|Lin|Luo|Zheng|Liang|Xie|Song|Tang|Han|"
    r"Feng|Deng|Cao|Peng|Zeng|Xiao|Tian|Dong|Yuan|Pan|Yu|Jiang|Cai|Du|Ye|Cheng|Su|Wei|Lu|Ding|Ren|Shen|Yao|Cui|Zhong|Tan|Fan|Shi|Liao|Jia|"
    r"Xia|Fu|Fang|Bai|Zou|Meng|Xiong|Qin|Qiu|Yin|Xue|Yan|Duan|Lei|Hou|Long|Tao|Gu|Mao|Hao|Gong|Shao|Wan|Qian|Dai|Mo|Kong)"
)
_SPACED = rf"{_S}[ \t\u3000]{{1,2}}{HAN}(?!{HAN})"  # 张　伟: padded to the width of three characters
_END = rf"(?!{HAN}|[A-Za-z])"
_SEPARATOR = r"\s*[/、，,／]\s*"

_ROLE = (
    r"(?:(?:报告|审核|复核|审阅|审签|审定|检查|记录|书写|申请|送检|初诊|复诊|初步|最终|诊断|签发|操作|主治|主任|住院|经治|上级|"
    r"值班|会诊|阅片|病理|超声|影像|放射|内镜|手术|麻醉|主刀|管床|主管|主诊|取材|摄片|投照|扫描|注射|录入|打印|发送|接收|通知|"
    r"责任|值机|初检|复检|初写|接电话|接听|检验|核对|校对|主检|穿刺|护理|带教|进修){1,3}"
    r"(?:医师|医生|大夫|者|人|员|技师|技士|护士)"
    r"|医师|医生|技师|技士|护士|主任|术者|助手|打字员|化验员)(?:签名|签字|签章|姓名)?"
)
_WEAK_ROLE = (
    r"(?:审核|复核|审签|审阅|审定|书写|记录|签发|签名|签字|报告|取材|包埋|制片|切片|染色|初检|复检|初审|终审|初写|终写|校对|核对|"
    r"录入|打字|操作|摄影|扫描|阅片|穿刺|护理|[一二三]助|[一二三]线|助理|巡回|器械)"
)
_PATIENT = (
    r"(?:患者|病人|病员|患儿|产妇|孕妇|死者|受检者|被检者|家属|家长|联系人|亲属|监护人|配偶|伤者|逝者|陪护|其妻|其夫|其子|其女|"
    r"其父|其母|丈夫|妻子|儿子|女儿|父亲|母亲)"
)
_TITLE = (
    r"(?:先生|女士|小姐|同志|某某?|(?:副)?主任(?:医师|技师|护师)?|主治医师|医生|医师|大夫|教授|护士长?|技师|副?院长|老师|专家|"
    r"同学|阿姨|大爷|大妈|奶奶|爷爷|师傅)"
)
_BEFORE_TITLE = (
    r"(?:(?<![\u4e00-\u9fff])|(?<=[与经由请跟同被据科院临找嘱床房室])"
    r"|(?<=临床)|(?<=我是)|(?<=通知)|(?<=报告)|(?<=联系)|(?<=告知)|(?<=对照))"
)
_TITLED_ORDINARY = (
    r"(?!高(?:级|年资|职)"
    r"|[向和时于应全方管查位原班官项商连关计盘司师](?:主任|医|大夫|教授|护士|专家|老师|技师|院长)|于某)"
)
_FIELDS = r"(?=\s*(?:性别|年龄|科别|科室|床号|住院号|门诊号|检查|男|女|送检|申请|临床|籍贯|民族|职业|出生|ID))"

_SEX = r"\s*[，,]\s*[男女](?:性)?\s*[，,、；;]?\s*(?=\d|生后|孕)"
_MEDICAL = "[癌炎病症肿瘤伤痛术声部肺肝肾胃腺折热影查诊检]"
NAME_RULES = (
    # labels of forms
    rf"姓\s?名\s*[:：]\s*({_DOTTED}|{_LATIN}|{_SPACED}|{HAN}{{2,5}}(?!{HAN})|{HAN}{{2,4}}?{_FIELDS}|{_S}{HAN}{{1,2}})",
    rf"姓名[ \t\u3000]+({_FULL})(?!{HAN})",
    r"(?i:reported by|radiologist|physician|referring doctor|patient(?:'s)? name|signed by)\s*:\s*"
    rf"({_LATIN}|{HAN}{{2,4}})",
    rf"\b(?:Dr|Mr|Mrs|Ms|Miss|Prof)\.?\s+({_LATIN})",
    # signatures
    rf"{_ROLE}\s*[:：]\s*(?!同[上前]|见|未|无|待|详)"
    rf"({_DOTTED}|{_SPACED}|(?:{HAN}{{2,3}}|{_FULL})(?:{_SEPARATOR}{_FULL}{_END}){{0,4}}{_END}|{_USUAL}|{_LATIN})",
    rf"{_ROLE}[ \t\u3000]{{1,9}}({_SPACED})",
    rf"(?<!{HAN}){_WEAK_ROLE}{{1,2}}(?:签名|签字)?\s*[:：]\s*({_FULL}(?:{_SEPARATOR}{_FULL})?{_END})",
    rf"(?<!{HAN})({_FULL})[（(](?:审核|报告|记录|书写|复核|诊断|签发)[)）]",
    rf"(?<!{HAN})(?:检查|诊断|超声诊断|影像诊断|病理诊断|超声科|放射科|影像科|病理科)\s*[:：]\s*({_USUAL}){_END}",
    rf"{_ROLE}[ \t\u3000]*({_FULL}(?:{_SEPARATOR}{_FULL}{_END}){{0,3}}{_END})",
    rf"{_ROLE}[ \t\u3000]*({_USUAL})",
    rf"{_ROLE}[（(]({_FULL}(?:{_SEPARATOR}{_FULL}){{0,4}})[）)]",
    rf"[。；;\n]\s*({_FULL}\s*[/／、]\s*{_FULL}){_END}",
    rf"^\s*({_USUAL}\s*[/／、]\s*{_USUAL}){_END}",
    rf"[（(]\s*({_USUAL})\s*[)）](?=\s*$)",
    rf"[。；;\n]\s*({_USUAL})(?=\s*(?:$|\n|[，,]?\s*\0))",
    # patients and relatives
    rf"(?:{_PATIENT})(?:[:：\s]|[（(])?\s*({_FULL})(?=\s*(?:$|[，,。；;：:（）()、\n]))",
    rf"(?:{_PATIENT})[:：]?\s*({_DOTTED}|{_USUAL}|{_PINYIN} [A-Z][a-z]+)",
    rf"({_USUAL})(?=接听|接电话|已接|复述)",
    rf"{_PATIENT}({_FULL})(?=因|诉|既往|行|昨|今|本次|在我|在外|曾|代[签述诉]|要求|拒绝|陪同)",
    rf"(?:患者|病人|患儿)(?!老年|中年|青年|成年|高龄|{HAN}{{0,3}}{_MEDICAL})({HAN}{{2,6}})"
    r"(?=\s*[，,]\s*(?:[\u4e00-\u9fff]{1,3}族|[男女]性?[，,]))",
    rf"(?:{_PATIENT})\s?({_S}某{{1,2}})",
    rf"(?:^|[。；;\n])\s*(?!患|病|老年|青年|中年|成年|婴|新生|胎儿|性别|同前|既往|{HAN}{{0,3}}{_MEDICAL})"
    rf"({_DOTTED}|{_SPACED}|{HAN}{{2,4}}){_SEX}",
    rf"[，,\s]({_FULL}){_SEX}",
    rf"(?<!{HAN})({_FULL})之(?=[子女妻夫父母])",
    rf"({_FULL})本人(?=核|确|签|到|要)",
    # titles
    rf"{_BEFORE_TITLE}{_TITLED_ORDINARY}({_FULL}|(?:{_COMPOUND}|{_S})){_TITLE}",
    rf"{_BEFORE_TITLE}({_S})老(?=会诊|阅|指导|复核|看)",
    rf"(?:技师|护士|医生|医师)(小{_S})(?!叶)",
)

# --- numbers ---

_VALUE = r"[A-Za-z]{0,6}[-_]?\d[A-Za-z\d]{1,24}(?:-[A-Za-z\d]{1,16}){0,3}"
_NUMBER_LABEL = (
    r"(?:住院|门诊|急诊|病历|病案|档案|影像学?|放射|核磁|磁共振|CT|MRI?|DR|CR|DX|DSA|PET|X线|X光|超声|B超|彩超|病理|冰冻|检查单?|检验单?|登记|申请单?|"
    r"条码|条形码|就诊卡?|诊疗卡?|医保卡?|社保卡?|健康卡|身份证件?|证件?|护照|军官证|体检|旧片|老片|胶片|片|切片|玻片|蜡块|标本|"
    r"会诊|内镜|胃镜|肠镜|心电图|核医学|患者|病人|病员|流水|报告|预约|就医|医案|卡|保单|合同|车牌|工)(?:编号|号码|号|ID|证号)"
)
NUMBER_RULES = (
    r"(?<!\d)([1-9]\d{5} (?:19|20)\d{6} \d{3}[\dXx])(?!\d)",
    rf"(?:{_NUMBER_LABEL}|(?<!型)编号|身份证|证件|登记证|流水)\s*(?:为|是)?\s*[:：#=]?\s*({_VALUE})",
    rf"(?i:(?<![A-Za-z])(?:patient\s?)?ID号?|accession\s?(?:number|no\.?)?|MRN|"
    r"(?:hospital|medical record)\s(?:number|no\.?))"
    rf"\s*[:：=#]?\s*({_VALUE})",
    rf"(?<!{HAN})号码\s*[:：]\s*({_VALUE})",
    r"(?:尾号|后四位)\s*(?:为|是)?\s*[:：]?\s*(\d{3,6}[Xx]?)",
    r"床\s?(?:[位号]\s*[:：]?|[:：])\s*([A-Za-z加]{0,3}-?\d{1,4}床?)",
    r"(?<![\d.第/])(加?\d{1,3}\s?床)(?!旁|边|位|数|垫|单)",
    r"(?<![\d.A-Za-z])([A-Za-z]{0,3}\d{9,30})(?![\d.])",
)
PHONE_RULES = (
    r"(?<![\dA-Za-z])((?:\+?86[- ]?)?1[3-9]\d[- .]?[\d*＊]{4}[- .]?\d{4})(?!\d)",
    r"(?<![\d.])([（(]?0\d{2,3}[）)]?[- —]{0,2}\d{3,4}[- ]?\d{4}(?:[-转]\d{1,6})?)(?!\d)",
    r"(?<![\d.])([48]00-?\d{3,4}-?\d{3,4})(?!\d)",
    r"(?i:电话|手机|手机号码?|号码|致电|拨打|联系方式|tel|phone|固话|传真|内线|短号|分机|热线|座机|小灵通|寻呼)号?码?\s*(?:为|是)?\s*"
    r"[:：]?\s*[（(]?(\+?\d[\d -]{2,16}\d(?:转\d{2,6})?)(?!\d|\.\d)",
    r"\0\s*转\s*(\d{2,6})",
    r"(?i:微信|QQ|wechat)号?码?\s*[:：]?\s*([A-Za-z\d][A-Za-z\d_-]{4,24})",
    r"(?<![A-Za-z\d_.+-])([A-Za-z\d][A-Za-z\d_.+-]{0,63}@[A-Za-z\d][\w-]{0,62}(?:\.[A-Za-z\d]{2,20}){1,4})",
)

# --- dates and times ---

_MONTH, _DAY = r"(?:0?[1-9]|1[0-2])", r"(?:0?[1-9]|[12]\d|3[01])"
_DIGIT = "[〇○零一二三四五六七八九]"
# the year of a guideline or a classification is not the patient's
_EDITION = (
    r"(?:版|年?\s?[A-Za-z]{0,20}\s?(?:国际|国内|中国|欧洲|美国|国家|最新|新版)?"
    r"(?:指南|共识|分类|分期|标准|规范|建议书|诊疗|WHO|FIGO|AJCC|NCCN))"
)
DATE_RULES = (
    rf"(?<![\d.])((?:19|20)\d{{2}}([-/.])\s?{_MONTH}\2\s?{_DAY}(?:T(?=\d{{2}}[:：]))?)(?!\d)",
    r"(?<!\d)((?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01]))(?!\d)",
    rf"(?<![\d.])((?:19|20)\d{{2}}[-/]{_MONTH})(?![\d/-])",
    r"(?<![\d.约分积值为量])((?:19|20)\d{2}\.(?:0[1-9]|1[0-2]))(?![\d.%×*a-zA-Zμ]|\s*[a-zA-Z×*])",
    rf"(?<!\d)((?:19|20)\d{{2}}\s*年\s*{_MONTH}\s*月份?(?:\s*{_DAY}\s*[日号])?)",
    rf"(?<!\d)(\d{{2}}\s*年\s*{_MONTH}\s*月\s*{_DAY}\s*[日号])",
    rf"(?<!\d)((?:19|20)\d{{2}}\s*年(?:[春夏秋冬]季?|[初中末底])?)(?!{_EDITION})",
    rf"(?<![\d孕])({_MONTH}\s*月\s*{_DAY}\s*[日号])(?!龄)",
    r"(?:术日|手术日|入院日|复查日)\s*[:：]?\s*(\d{1,2}[-./]\d{1,2})(?![\d./-])",
    r"(?<!\d)(0\d年|(?<=[于自])[12]\d年)(?![余来多前后内])",
    r"((?:元月|正月|腊月)\s*\d{1,2}\s*[日号]?)",
    r"日期\s*[:：]?\s*(\d{2}(?:\d{2})?[-./]\d{1,2}[-./]\d{1,2})(?!\d)",
    rf"(?:对比|比较|较|与|参照|对照|及)({_MONTH}[.]{_DAY})(?=\s*(?:日|胸片|CT|MR|片|X线|超声|彩超|平片|检查))",
    rf"(?<![\d近约前后第.-])({_MONTH}-{_DAY}日)(?=\s*(?:CT|MR|胸片|片|X线|超声|彩超|检查|行))",
    r"(?<=[（(，,])((?:19|20)\d{2}\.[1-9])(?=[）)])",
    rf"(?<![\d孕后龄满])({_MONTH}\s*月(?:份|初|底|[上中下]旬))",
    rf"([去今前昨本]年\s*{_MONTH}\s*月份?)",
    rf"({_DIGIT}{{4}}年(?:[一二三四五六七八九十]{{1,2}}月(?:[一二三四五六七八九十]{{1,3}}[日号])?)?)",
    r"([一二三四五六七八九十]{1,2}月[一二三四五六七八九十]{1,3}[日号])",
    r"(?<![\d./-])(\d{1,2}([/-])\d{1,2}\2(?:19|20)\d{2})(?!\d)",
    rf"(?<![\dA-Za-z第./、-])(\d{{2}}([-/]){_MONTH}\2{_DAY})"
    r"(?![\d./-]|\s*(?:[肋椎胸腰颈骶跖指趾掌组层个枚岁周天年]|[cm]m|%))",
)
_MINUTE = r"[0-5]\d"
# 3:00方向 is a position on a clock face, 1:20 a dilution
_NO_POSITION = (
    r"(?!\d|[:：]?\d|\s*(?:[-~～至到]\s*\d{1,2}(?:[:：]\d{2})?\s*)?(?:点钟?|钟)?"
    r"(?:方向|方位|位|距|处|象限|乳|稀|滴|阳|比|可见|见|探|[（(][+-]))"
)
_CLOCK = rf"(?:[01]?\d|2[0-4])[:：]{_MINUTE}(?:[:：]{_MINUTE})?(?:\.\d{{1,3}})?"
_DAYTIME = r"(?:凌晨|清晨|早晨|早上|早|今晨|今早|上午|中午|午后|下午|傍晚|昨晚|今晚|晚上|晚间|晚|夜间|夜里|半夜|深夜)"
TIME_RULES = (
    rf"({_DAYTIME}\s*(?:约|于)?\s*(?:\d{{1,2}}[:：]{_MINUTE}|\d{{1,2}}\s*[点时](?:\s*{_MINUTE}分?|\s*\d分|半|整)?|"
    r"[一二三四五六七八九十]{1,2}[点时]半?))(?!钟?方向|间)",
    r"(?<!\d[:：])(?<![\d.乳位腺缘管体度比例旁侧晕=-])(?<![乳位腺缘管侧]\s)"
    rf"((?!1[:：][0-5]\d(?![\d:：])){_CLOCK}){_NO_POSITION}",
    rf"(?<=于)(1[:：]{_MINUTE}){_NO_POSITION}",
    r"(?<!\d)((?:[01]?\d|2[0-4])\s*[时点]\s*[0-5]?\d\s*分)(?!钟)",
    r"(?<![\d.])((?:1[3-9]|2[0-4])时(?:许|整|半)?)(?![间相期程\d])",
    r"时间\s*[:：]\s*((?:[01]\d|2[0-3])[0-5]\d)(?!\d)",
    r"(?:今日|当日|昨日|次日|时间[:：]?)\s*(\d{1,2}\s*[点时](?:许|整|半)?)(?![间相期钟\d])",
    r"(?<![\d.])((?:[01]?\d|2[0-4])[点时][0-5]\d)(?![\d.%分秒]|\s*[cm]?m)",
)

# --- hospitals and addresses ---

_HOSPITAL_KIND = (
    r"(?:医院|卫生院|保健院|疗养院|总院|卫生服务中心|卫生服务站|卫生所|卫生室|"
    r"医学中心|医疗中心|医学影像中心|影像诊断中心|影像中心|眼科中心|体检中心|体检机构|肿瘤中心|疾控中心|疾病预防控制中心|结核病防治所|防治院|诊所|门诊部|"
    r"(?:附|市|省|区|县|医大|医科大|人民|湘雅|华山)[一二三四五六]院|附院)"
)
HOSPITAL = re.compile(
    rf"{_HOSPITAL_KIND}(?!获得|内获得|感染|相关|管理)(?:[东西南北新老总本]院区?|分院|{HAN}{{2}}院区|{HAN}{{2}}分院)?"
)
ADDRESS_RULES = (
    r"((?:家庭住?址|家庭地址|通讯地址|单位地址|现住址|住址|地址|现住地?|居住地|居住于|现居住?于?|家住|户籍地?址?|籍贯|户口所在地|"
    r"工作单位)\s*(?:[:：]|为|在|于)?\s*"
    r"[^\s，,。；;：:、（）()\0]{2,40})",
    r"邮编\s*[:：]?\s*(\d{6})(?!\d)",
    rf"((?![在于住居系到来至])(?!超市){HAN}{{2,3}}市{HAN}{{1,3}}[区县])(?!{HAN}{{0,8}}(?:路|街|道|巷|镇|乡|村))",
    rf"[系为是](?![疫本该农山牧某当外城])({HAN}{{2,6}}[县市区镇乡村州])(?=农民|居民|人|籍)",
    rf"(?:(?<!{HAN})[住居]|[常租暂现]住|居住于?)在?({HAN}{{1,6}}(?:镇|乡|街道|村|路|街)[^\s，,。；;\0]{{0,20}})",
    rf"({HAN}{{2,3}}(?:省|市|县)(?:{HAN}{{1,6}}?[市区县镇乡])?{HAN}{{1,8}}?(?:街道|大道|路|街|巷|镇|乡|村)"
    r"(?:\d{1,5}[号弄组][\d\-A-Za-z栋幢楼单元室院号组]{0,16})?)",
    rf"(?<={HAN}{{2}})((?:路|街|大道|巷|弄|胡同)\d{{1,5}}号[\d\-A-Za-z栋幢楼单元室院号]{{0,16}})",
    rf"来自({HAN}{{1,4}}(?:省|市|县|镇|乡)(?:{HAN}{{1,6}}?[县区镇乡村]){{0,3}})",
    r"(?<!\d)(\d{1,3}[栋幢]\d{1,2}单元\d{1,5}室?)",
)
HOSPITAL_LATIN = (
    r"((?:[A-Z][A-Za-z'.]{1,20} (?:of |and )?){1,7}(?:Hospital|Medical Center|Clinic|Infirmary))",
    r"((?:解放军|武警|第)?\s?(?:(?:解放军)?第)?(?<!\d)\d{3}总?医院)",
)

# --- certain enough to reject a sample ---

_CERTAIN_TITLE = r"(?:先生|女士|小姐|医生|医师|大夫|主任|教授|护士|某某?)"
# words that start with the character of a surname: 谢谢, 任何, 向医生
_NOT_A_NAME = r"(?!谢谢|许多|任何|高级|高年资|马上|向(?:医|大夫|主任|教授|护士))"
_DATE_ZH = r"(?:19|20)\d{2}\s*年\s*\d{1,2}\s*月\s*\d{1,2}\s*[日号]"
_MONTH_NAME = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
PATTERNS: dict[str, re.Pattern[str]] = {
    "name": re.compile(
        rf"(?:姓名|患者姓名|病人姓名|联系人)\s*[:：]\s*[\u4e00-\u9fff·]{{2,}}"
        rf"|(?:患者|病人|患儿|病员)\s*[{_COMMON_SURNAMES}]某"
        rf"|(?<![\u4e00-\u9fff]){_NOT_A_NAME}[{_COMMON_SURNAMES}](?:(?!的)[\u4e00-\u9fff]){{0,2}}{_CERTAIN_TITLE}"
        r"|\b(?i:patient(?:'s)? name|name of patient)\s*:\s*\w+|\b(?:Mr|Mrs|Ms|Miss)\.?\s+[A-Z][a-z]+"
        r"|\bDr\.?\s+[A-Z][a-z]+"
    ),
    "identity number": re.compile(r"(?<!\d)[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:[0-2]\d|3[01])\d{3}[\dXx](?!\d)"
                                  r"|\b(?:SSN|social security)\D{0,12}\d{3}-\d{2}-\d{4}"),
    "phone": re.compile(r"(?<!\d)(?:\+?86[- ]?)?1[3-9]\d{9}(?!\d)|(?<!\d)0\d{2,3}-\d{7,8}(?!\d)"
                        r"|(?<!\d)\(?\d{3}\)?[- ]\d{3}-\d{4}(?!\d)|(?:电话|手机|tel)\s*[:：]\s*\d{7,}", re.IGNORECASE),
    "date": re.compile(
        rf"{_DATE_ZH}|(?<![\d.])(?:19|20)\d{{2}}[-/.](?:0?[1-9]|1[0-2])[-/.](?:0?[1-9]|[12]\d|3[01])(?![\d.])"
        rf"|(?<![\d.])\d{{1,2}}/\d{{1,2}}/(?:19|20)\d{{2}}(?!\d)|\b{_MONTH_NAME}\s+\d{{1,2}},?\s+(?:19|20)\d{{2}}\b"
        rf"|\b\d{{1,2}}\s+{_MONTH_NAME}\s+(?:19|20)\d{{2}}\b",
        re.IGNORECASE,
    ),
    "hospital number": re.compile(
        r"(?:住院号|门诊号|病案号|病历号|检查号|影像号|登记号|床号|X线号|CT号|MRI?号)\s*[:：]?\s*[A-Za-z]?\d{2,}"
        r"|\b(?:MRN(?![A-Za-z])|medical record (?:number|no\.?)|accession (?:number|no\.?)"
        r"|hospital (?:number|no\.?))\s*[:#]?\s*\w*\d+",
        re.IGNORECASE,
    ),
    # anchored at the start of a word: otherwise a run of Chinese characters is retried from each of them
    "address": re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+\.[\w.]+|(?:家庭住址|住址|地址)\s*[:：]\s*\S{4,}"),
}  # fmt: skip


def compiled(label: str, patterns: Iterable[str]) -> tuple[tuple[str, re.Pattern[str]], ...]:
    """The rules of a label. White space is bounded: blank lines would be read again from each of them."""
    return tuple((label, re.compile(pattern.replace(r"\s*", r"\s{0,9}"))) for pattern in patterns)


@cache
def rules() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """In their order: what a rule removes is a run of \\0 for the rules after it. Compiling takes most of a second."""
    return (
        *compiled("编号", NUMBER_RULES[:4]),
        ("证件号", PATTERNS["identity number"]),
        *compiled("电话", PHONE_RULES),
        *compiled("日期", DATE_RULES),
        ("日期", PATTERNS["date"]),
        *compiled("时间", TIME_RULES),
        *compiled("编号", NUMBER_RULES[4:]),
        ("编号", PATTERNS["hospital number"]),
        *compiled("地址", ADDRESS_RULES),
        ("医院", HOSPITAL),
        *compiled("医院", HOSPITAL_LATIN),
        *compiled("姓名", NAME_RULES),
        ("地址", PATTERNS["address"]),
        ("电话", PATTERNS["phone"]),
        ("姓名", PATTERNS["name"]),
    )


def find_personal_data(text: str) -> list[str]:
    """The types of PHI that a text seems to contain, in the order of PATTERNS."""
    return [name for name, pattern in PATTERNS.items() if pattern.search(text)]
